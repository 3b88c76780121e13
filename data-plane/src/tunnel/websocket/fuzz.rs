//! Fuzz target: frames.

use bytes::BytesMut;

use super::frame::{self, From, Header, Sequence};
use crate::fuzz;

#[test]
fn fuzz_websocket_frames() {
    let frame = |last, opcode, length, mask| {
        let mut out = BytesMut::new();
        frame::write(&mut out, last, opcode, length, mask);
        out.to_vec()
    };
    let seeds = [
        frame(true, frame::Opcode::Text, 5, None),
        frame(false, frame::Opcode::Binary, 300, Some([1, 2, 3, 4])),
        frame(true, frame::Opcode::Continuation, 70_000, None),
        frame(true, frame::Opcode::Close, 2, Some([9; 4])),
    ];
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    fuzz::run("websocket_frames", &seeds, |input| {
        let mut seen = Vec::new();
        for from in [From::Agent, From::Upstream] {
            let (mut rest, mut sequence) = (input, Sequence::default());
            loop {
                match Header::read(rest, from) {
                    Err(_) => break seen.push("malformed".to_owned()),
                    Ok(None) => break,
                    Ok(Some(header)) => {
                        for shorter in 0..header.size {
                            assert_eq!(Header::read(&rest[..shorter], from), Ok(None), "it ends before it ends");
                        }
                        let mut again = BytesMut::new();
                        let mask = (from == From::Agent).then_some(header.mask);
                        frame::write(&mut again, header.last, header.opcode, header.length, mask);
                        assert_eq!(again, rest[..header.size], "one frame, one spelling");
                        let fits = sequence.next(&header).is_ok();
                        seen.push(format!("{:?} {} {fits}", header.opcode, header.last));
                        let skip = header.size.saturating_add(usize::try_from(header.length).unwrap_or(usize::MAX));
                        if !fits || skip > rest.len() {
                            break;
                        }
                        rest = &rest[skip..];
                    }
                }
            }
        }
        fuzz::outcome(&seen)
    });
}
