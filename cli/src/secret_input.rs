//! How a secret comes in: a prompt without echo, standard input or a file. Never an argument: those stand in `ps` and in
//! the shell's history.

use std::{
    fs::File,
    io::{IsTerminal as _, Read},
    path::PathBuf,
};

use clap::Args;
use seks_types::secret::Secret;
use zeroize::Zeroize as _;

use crate::error::{CliError, Result, plain_io};

/// Largest secret, in bytes: 16 fields of 16 KiB.
const MAX_BYTES: usize = 256 * 1024;

/// Where the secret comes from; a prompt when nothing is said.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretInput {
    /// Read the secret from standard input (one trailing line break is not part of it)
    #[arg(long, conflicts_with = "from_file")]
    pub from_stdin: bool,
    /// Read the secret from a file
    #[arg(long, value_name = "FILE")]
    pub from_file: Option<PathBuf>,
}

impl SecretInput {
    /// Reads it.
    ///
    /// # Errors
    /// Exit code 2 when there is nothing to read it from, or too much.
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
        let typed = rpassword::prompt_password(prompt).map_err(|e| CliError::usage("secret", plain_io(&e)))?;
        not_empty(typed.into_bytes(), "secret")
    }
}

/// The bytes for the message that carries them to the seal; the binary's allocator wipes what becomes of them.
#[must_use]
pub fn for_the_wire(secret: &Secret) -> Vec<u8> {
    secret.expose().to_vec()
}

/// Reads to the end without ever growing a buffer: a growing one leaves copies of the secret behind.
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
