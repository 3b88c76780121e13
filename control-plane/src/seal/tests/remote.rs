//! A key that is elsewhere: what every provider must withstand, shown with a stand-in.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use futures_util::future::BoxFuture;

use super::*;

/// A key service: answers after a while, or not at all, and gives wrapped keys of a length of its
/// own.
struct KeyService {
    key: LocalKek,
    is_silent: AtomicBool,
    calls: AtomicUsize,
}

impl KeyService {
    async fn answer(&self) {
        self.calls.fetch_add(1, SeqCst);
        if self.is_silent.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl KekProvider for KeyService {
    fn id(&self) -> KekId {
        self.key.id()
    }

    fn wrap<'a>(&'a self, header: &'a [u8], dek: &'a Dek) -> BoxFuture<'a, Result<Vec<u8>, SealError>> {
        Box::pin(async move {
            self.answer().await;
            let wrapped = self.key.wrap(header, dek).await?;
            Ok([&b"key-service:"[..], &wrapped].concat())
        })
    }

    fn unwrap<'a>(&'a self, header: &'a [u8], wrapped: &'a [u8]) -> BoxFuture<'a, Result<Dek, SealError>> {
        Box::pin(async move {
            self.answer().await;
            let wrapped = wrapped.strip_prefix(b"key-service:").ok_or(SealError::Rejected)?;
            self.key.unwrap(header, wrapped).await
        })
    }
}

fn remote() -> (Arc<KeyService>, Sealer) {
    let key = LocalKek::new(&[5; local::BYTES]);
    let service = Arc::new(KeyService { key, is_silent: false.into(), calls: 0.into() });
    (service.clone(), Sealer::with_keys(service, vec![Arc::new(LocalKek::new(&KEY))]))
}

#[tokio::test(start_paused = true)]
async fn a_key_elsewhere_is_asked_once_for_what_many_nodes_need_at_once() {
    let (service, sealer) = remote();
    let envelope = sealer.seal(&ID, &Secret::new(PLAINTEXT.to_vec())).await.unwrap();
    assert!(matches!(sealer.open_now(&ID, &envelope), Err(SealError::KekUnavailable(_))), "nobody waits for it");
    assert!(sealer.needs_dek(&envelope) && !sealer.is_local() && service.calls.load(SeqCst) == 1);
    let nodes = (0..100).map(|_| sealer.load_deks(std::slice::from_ref(&envelope)));
    futures_util::future::join_all(nodes).await;
    assert!(service.calls.load(SeqCst) <= 9, "{} calls for one key", service.calls.load(SeqCst));
    assert_eq!(sealer.open_now(&ID, &envelope).unwrap().expose(), PLAINTEXT);
    assert!(matches!(sealer.open_now(&RecordId { version: 4, ..ID }, &envelope), Err(SealError::Rejected)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_key_service_costs_2_seconds_once_and_is_asked_again_later() {
    let (service, sealer) = remote();
    let envelope = sealer.seal(&ID, &Secret::new(PLAINTEXT.to_vec())).await.unwrap();
    service.is_silent.store(true, SeqCst);
    let begun = tokio::time::Instant::now();
    sealer.load_deks(std::slice::from_ref(&envelope)).await;
    assert_eq!(begun.elapsed(), KEK_LIMIT);
    assert!(!sealer.needs_dek(&envelope), "whoever comes next goes on without it");
    sealer.load_deks(std::slice::from_ref(&envelope)).await;
    assert_eq!(begun.elapsed(), KEK_LIMIT);
    let sealed = sealer.seal(&ID, &Secret::new(PLAINTEXT.to_vec())).await;
    assert!(matches!(sealed, Err(SealError::KekUnavailable(_))));
    service.is_silent.store(false, SeqCst);
    tokio::time::sleep(Duration::from_secs(11)).await;
    sealer.load_deks(std::slice::from_ref(&envelope)).await;
    assert_eq!(sealer.open_now(&ID, &envelope).unwrap().expose(), PLAINTEXT);
}

#[tokio::test(start_paused = true)]
async fn a_store_moves_from_a_local_key_to_one_elsewhere_and_back() {
    let (_service, sealer) = remote();
    let old = envelope();
    let moved = sealer.rewrap(&old).await.unwrap().unwrap();
    assert_eq!(moved[0], 2, "a wrapped key of another length");
    assert_eq!(sealer.open(&ID, &moved).await.unwrap().expose(), PLAINTEXT);
    for cut in 0..moved.len() {
        assert!(sealer.open(&ID, &moved[..cut]).await.is_err(), "{cut}");
    }
    let back = Sealer::with_keys(Arc::new(LocalKek::new(&KEY)), vec![sealer.active.clone()]);
    let back = back.rewrap(&moved).await.unwrap().unwrap();
    assert!(back[0] == 1 && back[70..] == old[70..], "the secret itself is not touched");
    assert_eq!(opened(&super::sealer(7, &[]), &ID, &back).unwrap(), PLAINTEXT);
}
