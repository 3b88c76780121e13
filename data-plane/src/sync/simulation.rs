//! Connections over a simulated network in the place of TCP and TLS. Compiled with the feature
//! `simulation` alone.

use std::{cell::RefCell, sync::Arc};

use futures_util::future::BoxFuture;
use tonic::transport::{Channel, Endpoint, Error};

/// Connects to an endpoint that has all of the product's settings but its TLS.
pub type Dial = Arc<dyn Fn(Endpoint) -> BoxFuture<'static, Result<Channel, Error>> + Send + Sync>;

thread_local! {
    static DIAL: RefCell<Option<Dial>> = const { RefCell::new(None) };
}

/// Whose turn it is connects by `dial`; `None`: as in production.
pub fn set_dial(dial: Option<Dial>) {
    DIAL.set(dial);
}

pub(super) fn dial(uri: &str, tuned: fn(Endpoint) -> Endpoint) -> Option<BoxFuture<'static, Result<Channel, Error>>> {
    let dial = DIAL.with_borrow(Clone::clone)?;
    let plain = uri.replacen("https://", "http://", 1);
    let endpoint = Endpoint::from_shared(plain).map(tuned);
    Some(Box::pin(async move { dial(endpoint?).await }))
}
