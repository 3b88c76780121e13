//! The codings that are registered and in use: gzip, deflate, br, zstd.

use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, enc::StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{self as zstd_raw, DParameter, Operation as _};

/// A registered coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Coding {
    pub(super) fn named(name: &str) -> Option<Self> {
        let is = |n: &&str| name.eq_ignore_ascii_case(n);
        Some(match () {
            () if ["gzip", "x-gzip"].iter().any(is) => Self::Gzip,
            () if is(&"deflate") => Self::Deflate,
            () if is(&"br") => Self::Brotli,
            () if is(&"zstd") => Self::Zstd,
            () => return None,
        })
    }
}

/// Why a coded body can't be relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodingError {
    /// It isn't of its coding.
    #[error("the body is not of the coding that its head names")]
    Corrupt,
    /// It ended before its coding does.
    #[error("the coded body ended early")]
    Truncated,
    /// It grew beyond what any honest answer does.
    #[error("the coded body grows too far")]
    Bomb,
    /// The decoder can't be made.
    #[error("no memory for a decoder")]
    Memory,
}

/// How much was read and written.
pub(super) struct Step {
    pub(super) read: usize,
    pub(super) written: usize,
}

/// A decoder of one body.
pub(super) enum Decoder {
    Gzip(Gzip),
    Deflate(Deflate),
    Brotli { state: Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>, ended: bool },
    Zstd { decoder: Box<zstd_raw::Decoder<'static>>, ended: bool },
}

/// Largest zstd window, as RFC 8878 recommends decoders to support: 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

impl Decoder {
    pub(super) fn new(coding: Coding) -> Result<Self, CodingError> {
        Ok(match coding {
            Coding::Gzip => Self::Gzip(Gzip::new()),
            Coding::Deflate => Self::Deflate(Deflate::Unknown(Vec::new())),
            Coding::Brotli => {
                let allocator = StandardAlloc::default;
                let state = BrotliState::new_strict(allocator(), allocator(), allocator());
                Self::Brotli { state: Box::new(state), ended: false }
            }
            Coding::Zstd => {
                let mut decoder = zstd_raw::Decoder::new().map_err(|_| CodingError::Memory)?;
                let window = DParameter::WindowLogMax(ZSTD_WINDOW_LOG);
                decoder.set_parameter(window).map_err(|_| CodingError::Memory)?;
                Self::Zstd { decoder: Box::new(decoder), ended: false }
            }
        })
    }

    /// Reads some of `input`, writes some of `output`.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, CodingError> {
        match self {
            Self::Gzip(gzip) => gzip.step(input, output),
            Self::Deflate(deflate) => deflate.step(input, output),
            Self::Brotli { ended: true, .. } => Ok(Step { read: input.len(), written: 0 }),
            Self::Brotli { state, ended } => {
                let (mut in_left, mut read, mut out_left, mut written) = (input.len(), 0, output.len(), 0);
                let result = BrotliDecompressStream(
                    &mut in_left,
                    &mut read,
                    input,
                    &mut out_left,
                    &mut written,
                    output,
                    &mut 0,
                    state,
                );
                match result {
                    BrotliResult::ResultFailure => return Err(CodingError::Corrupt),
                    BrotliResult::ResultSuccess => *ended = true,
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
                }
                Ok(Step { read, written })
            }
            Self::Zstd { decoder, ended } => {
                let status = decoder.run_on_buffers(input, output).map_err(|_| CodingError::Corrupt)?;
                if status.bytes_read > 0 || status.bytes_written > 0 {
                    *ended = status.remaining == 0;
                }
                Ok(Step { read: status.bytes_read, written: status.bytes_written })
            }
        }
    }

    /// The body has ended. `empty`: without a byte, which is no error (an answer to HEAD).
    pub(super) fn finish(&self, empty: bool) -> Result<(), CodingError> {
        let ended = match self {
            Self::Gzip(gzip) => matches!(gzip.state, GzipState::Header | GzipState::Over) && gzip.head.is_empty(),
            Self::Deflate(deflate) => matches!(deflate, Deflate::Over),
            Self::Brotli { ended, .. } | Self::Zstd { ended, .. } => *ended,
        };
        if empty || ended { Ok(()) } else { Err(CodingError::Truncated) }
    }
}

/// `deflate` means zlib (RFC 9110, 8.4.1.2), and some servers send it without zlib's frame.
pub(super) enum Deflate {
    Unknown(Vec<u8>),
    Known(Decompress),
    Over,
}

impl Deflate {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, CodingError> {
        match self {
            Self::Unknown(head) => {
                let read = input.len().min(2 - head.len());
                head.extend_from_slice(input.get(..read).unwrap_or_default());
                let [cmf, flg] = head[..] else { return Ok(Step { read, written: 0 }) };
                let zlib = cmf & 0x0f == 8 && (u16::from(cmf) << 8 | u16::from(flg)) % 31 == 0;
                let mut decompress = Decompress::new(zlib);
                // Without zlib's header, these two may hold the first byte of output, and the end.
                let (step, ended) = inflate(&mut decompress, &[cmf, flg], output)?;
                *self = if ended { Self::Over } else { Self::Known(decompress) };
                Ok(Step { read, written: step.written })
            }
            Self::Known(decompress) => {
                let (step, ended) = inflate(decompress, input, output)?;
                if ended {
                    *self = Self::Over;
                }
                Ok(step)
            }
            Self::Over => Ok(Step { read: input.len(), written: 0 }),
        }
    }
}

fn inflate(decompress: &mut Decompress, input: &[u8], output: &mut [u8]) -> Result<(Step, bool), CodingError> {
    let (before_in, before_out) = (decompress.total_in(), decompress.total_out());
    let status = decompress.decompress(input, output, FlushDecompress::None).map_err(|_| CodingError::Corrupt)?;
    let delta = |now: u64, before: u64| usize::try_from(now - before).unwrap_or_default();
    let step =
        Step { read: delta(decompress.total_in(), before_in), written: delta(decompress.total_out(), before_out) };
    Ok((step, status == Status::StreamEnd))
}

/// gzip (RFC 1952), members one after the other. The checksum is not looked at: transport has one,
/// and the agent is told nothing of a coding.
pub(super) struct Gzip {
    state: GzipState,
    /// A member's header, or trailer, as far as it has come.
    head: Vec<u8>,
    decompress: Decompress,
    /// A member has ended.
    again: bool,
}

enum GzipState {
    Header,
    Data,
    Trailer,
    /// Something else follows the last member; it is dropped.
    Over,
}

/// A header holds a file name and a comment; nobody sends long ones.
const MAX_HEADER: usize = 4096;

impl Gzip {
    fn new() -> Self {
        Self { state: GzipState::Header, head: Vec::new(), decompress: Decompress::new(false), again: false }
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, CodingError> {
        match self.state {
            GzipState::Header => self.header(input),
            GzipState::Data => {
                let (step, ended) = inflate(&mut self.decompress, input, output)?;
                if ended {
                    self.state = GzipState::Trailer;
                }
                Ok(step)
            }
            GzipState::Trailer => {
                let read = input.len().min(8 - self.head.len());
                self.head.extend_from_slice(input.get(..read).unwrap_or_default());
                if self.head.len() == 8 {
                    self.head.clear();
                    self.decompress.reset(false);
                    self.again = true;
                    self.state = GzipState::Header;
                }
                Ok(Step { read, written: 0 })
            }
            GzipState::Over => Ok(Step { read: input.len(), written: 0 }),
        }
    }

    fn header(&mut self, input: &[u8]) -> Result<Step, CodingError> {
        for (at, byte) in input.iter().enumerate() {
            self.head.push(*byte);
            match header_is_complete(&self.head) {
                Some(true) => {
                    self.head.clear();
                    self.state = GzipState::Data;
                    return Ok(Step { read: at + 1, written: 0 });
                }
                Some(false) if self.head.len() < MAX_HEADER => {}
                // Padding behind the last member is common.
                None if self.again => {
                    self.head.clear();
                    self.state = GzipState::Over;
                    return Ok(Step { read: input.len(), written: 0 });
                }
                _ => return Err(CodingError::Corrupt),
            }
        }
        Ok(Step { read: input.len(), written: 0 })
    }
}

/// `None`: it is no gzip header.
fn header_is_complete(head: &[u8]) -> Option<bool> {
    const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
    if !MAGIC.starts_with(head.get(..head.len().min(3))?) {
        return None;
    }
    let Some((fixed, mut rest)) = head.split_first_chunk::<10>() else { return Some(false) };
    let flags = fixed[3];
    if flags & 4 != 0 {
        let Some((length, tail)) = rest.split_first_chunk::<2>() else { return Some(false) };
        let Some((_, tail)) = tail.split_at_checked(u16::from_le_bytes(*length).into()) else { return Some(false) };
        rest = tail;
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            let Some(end) = memchr::memchr(0, rest) else { return Some(false) };
            rest = rest.get(end + 1..).unwrap_or_default();
        }
    }
    Some(flags & 2 == 0 || rest.len() >= 2)
}
