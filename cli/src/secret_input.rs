//! Input of secrets: a prompt without echo, standard input or a file. Never an argument, which `ps`
//! and the shell's history would show.

mod mistaken;

use std::{
    fs::File,
    io::{ErrorKind, IsTerminal as _, Read},
    path::PathBuf,
};

use clap::Args;
use seks_types::{secret::Secret, token::Digest};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};
use zeroize::Zeroize as _;

use crate::error::{CliError, Exit, Result, plain_io};

/// Largest secret, in bytes: 16 fields of 16 KiB.
const MAX_BYTES: usize = 256 * 1024;
/// What shells report of a program that SIGINT ended: 128 and the signal's number.
const INTERRUPTED: i32 = 130;

/// The source of the secret. A prompt when no option is given.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretInput {
    /// Read the secret from standard input (without one trailing line break)
    #[arg(long, conflicts_with = "from_file")]
    pub from_stdin: bool,
    /// Read the secret from a file
    #[arg(long, value_name = "FILE")]
    pub from_file: Option<PathBuf>,
}

impl SecretInput {
    /// Reads the secret.
    ///
    /// # Errors
    /// Exit code 2 when there is no source, or the input is too long.
    pub fn read(&self, prompt: &str) -> Result<Secret> {
        if let Some(path) = &self.from_file {
            let mut file = File::open(path).map_err(|e| CliError::file(path, &e))?;
            return read_all(&mut file, &path.display().to_string());
        }
        let mut stdin = std::io::stdin();
        if self.from_stdin {
            return read_all(&mut stdin, "standard input");
        }
        if !stdin.is_terminal() {
            return Err(CliError::usage("secret", "no terminal to ask for it")
                .hint("pass it with --from-stdin or --from-file FILE; never as an argument"));
        }
        let typed = ask(prompt)?;
        not_empty(typed.into_bytes(), "secret")
    }
}

/// Asks on the terminal, without echo.
///
/// At Ctrl-C `rpassword` raises SIGINT before it restores the terminal. The signal's default action
/// would end the process there and leave a terminal without echo, so the signal is caught.
fn ask(prompt: &str) -> Result<String> {
    let caught = Handle::try_current().ok().and_then(|_| signal(SignalKind::interrupt()).ok());
    let typed = rpassword::prompt_password(prompt).map_err(|error| match error.kind() {
        ErrorKind::Interrupted => CliError::new(Exit::Failed, "secret", "interrupted; nothing was changed"),
        _ => CliError::usage("secret", plain_io(&error)),
    })?;
    if let Some(mut interrupts) = caught {
        // From here on Ctrl-C ends the command again.
        tokio::spawn(async move {
            interrupts.recv().await;
            std::process::exit(INTERRUPTED);
        });
    }
    Ok(typed)
}

impl SecretInput {
    /// Reads a credential, and what seems to be wrong with it.
    ///
    /// # Errors
    /// As [`read`](Self::read), and exit code 2 for what is no credential.
    pub fn read_credential(&self, prompt: &str) -> Result<(Secret, Option<&'static str>)> {
        let secret = self.read(prompt)?;
        let warning = mistaken::check(secret.expose())?;
        Ok((secret, warning))
    }

    /// Reads a token and returns its digest. The token stays in this process.
    ///
    /// # Errors
    /// As [`read`](Self::read), and exit code 2 for what is no token of SEKS.
    pub fn read_token_digest(&self) -> Result<Digest> {
        let typed = self.read("token: ")?;
        seks_types::token::parse(typed.expose().trim_ascii())
            .map_err(|_| CliError::usage("token", "not a token of SEKS, or mistyped"))
    }
}

/// The bytes for the message that sends the secret. The binary's allocator wipes its buffers.
#[must_use]
pub fn for_the_wire(secret: &Secret) -> Vec<u8> {
    secret.expose().to_vec()
}

/// Reads to the end into a buffer of fixed size. A growing buffer would leave copies of the secret.
fn read_all(source: &mut impl Read, name: &str) -> Result<Secret> {
    let mut buffer = vec![0_u8; MAX_BYTES + 1];
    let mut length = 0;
    let outcome = loop {
        match source.read(buffer.get_mut(length..).unwrap_or_default()) {
            Ok(0) => break Ok(()),
            Ok(n) => length += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => break Err(CliError::usage(name, plain_io(&e))),
        }
    };
    let secret = outcome.and_then(|()| {
        if length > MAX_BYTES {
            return Err(CliError::usage(name, format!("more than {MAX_BYTES} bytes are no secret")));
        }
        not_empty(buffer.get(..length).unwrap_or_default().to_vec(), name)
    });
    buffer.zeroize();
    secret
}

fn not_empty(bytes: Vec<u8>, name: &str) -> Result<Secret> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(CliError::usage(name, "the secret is empty"));
    }
    Ok(Secret::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_whole_from_short_reads() {
        struct Trickle(Vec<u8>);
        impl Read for Trickle {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let Some(byte) = self.0.pop() else { return Ok(0) };
                buffer[0] = byte;
                Ok(1)
            }
        }
        let secret = read_all(&mut Trickle(b"cba".to_vec()), "x").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(secret.expose(), b"abc");
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        let error = |bytes: Vec<u8>| read_all(&mut &bytes[..], "standard input").err().unwrap().to_string();
        assert_eq!(error(b" \n".to_vec()), "standard input: the secret is empty");
        assert_eq!(error(vec![b'a'; MAX_BYTES + 1]), "standard input: more than 262144 bytes are no secret");
    }
}
