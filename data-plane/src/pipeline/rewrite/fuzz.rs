//! Fuzz target: the URL rewriter.

use bytes::Bytes;

use super::{text::UrlRewriter, urls::Urls};
use crate::fuzz;

#[test]
fn fuzz_url_rewriter() {
    let seeds: &[&[u8]] = &[
        br#"{"url":"https:\/\/up.test\/repos","next":"https://up.test/x?a=b","other":"https://up.test.evil/x"}"#,
        b"event: endpoint\ndata: https://up.test/messages\n\ndata:https://up.test:443/x\r\n\r\n",
        br#"["\u0068ttps://up.test/a","https:\u002f\u002fup.test","wss://up.test","//up.test/x"]"#,
    ];
    let urls = Urls::new(true, "up.test", 443, "http://node".into(), "/api/s".into());
    for events in [false, true] {
        fuzz::run("url_rewriter", seeds, |input| {
            let rewritten = |pieces: &[&[u8]]| {
                let (mut rewriter, mut out) = (UrlRewriter::new(urls.pattern(""), events), Vec::new());
                for piece in pieces {
                    out.extend_from_slice(&rewriter.push(Bytes::copy_from_slice(piece)));
                }
                out.extend_from_slice(&rewriter.finish());
                assert_eq!(rewriter.held(), 0);
                out
            };
            let whole = rewritten(&[input]);
            assert_eq!(whole, rewritten(&fuzz::pieces(input)), "what is rewritten depends on how it comes");
            fuzz::outcome(&(whole.len(), whole == input))
        });
    }
}
