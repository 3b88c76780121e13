//! Fuzz target: the grammar of tokens.

use super::{Digest, FreshToken, LEN, aws, parse};
use crate::fuzz;

#[test]
fn fuzz_token_grammar() {
    let token = FreshToken::generate().unwrap();
    let shaped = format!("sk-ant-{}", token.as_str());
    let seeds: &[&[u8]] =
        &[token.as_str().as_bytes(), shaped.as_bytes(), b"seks_token_", b"AKIAIOSFODNN7EXAMPLE", b"Bearer x"];
    fuzz::run("token_grammar", seeds, |input| {
        let _ = aws::digest_of(input); // must not panic
        match parse(input) {
            Ok(digest) => {
                assert!(input.len() >= LEN && input.len() <= LEN + 32);
                assert_eq!(digest, Digest::of(&input[input.len() - LEN..]), "the token is the end of the value");
                fuzz::outcome(&input.len())
            }
            Err(malformed) => fuzz::outcome(&format!("{malformed:?}")),
        }
    });
}
