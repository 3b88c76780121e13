use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::{
    RecvStream,
    client::{self, SendRequest},
    server::SendResponse,
};
use http::{Request, Response};
use tokio::{
    io::DuplexStream,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{
    connection::{self, Call, IDLE, Serve},
    tonic_call,
};
use crate::http2_limits::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};

/// A connection that `serve` serves, its other end, and its task.
fn connect(serve: impl Serve + Send + 'static) -> (DuplexStream, CancellationToken, JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(1024 * 1024);
    let stop = CancellationToken::new();
    (theirs, stop.clone(), tokio::spawn(connection::drive_connection(ours, serve, std::future::pending(), stop)))
}

/// As [`connect`], with HTTP/2 begun: how to call, and what drives the other end until it is
/// aborted.
async fn client(
    serve: impl Serve + Send + 'static,
) -> (SendRequest<Bytes>, JoinHandle<()>, CancellationToken, JoinHandle<()>) {
    let (io, stop, connection) = connect(serve);
    let (calls, driver) = client::handshake(io).await.unwrap();
    (calls, tokio::spawn(async move { drop(driver.await) }), stop, connection)
}

fn request() -> Request<()> {
    Request::post("https://replica/nothing").body(()).unwrap()
}

/// Says who began and who ended.
fn told(says: mpsc::UnboundedSender<&'static str>) -> impl Serve + Send {
    move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| -> Call {
        let says = says.clone();
        async move {
            says.send("begun").unwrap();
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            let mut body = request.into_body();
            if let Some(Ok(_)) = body.data().await {
                stream.send_data(Bytes::from_static(b"done"), true).unwrap();
            }
            says.send("ended").unwrap();
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_begin_or_does_not_call_is_shown_out() {
    let began = Instant::now();
    let (_io, _stop, silent) = connect(|_, _| unreachable!("nobody calls"));
    silent.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));

    let (_calls, _driver, _stop, idle) = client(|_, _| unreachable!("nobody calls")).await;
    idle.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10) + IDLE);
}

#[tokio::test(start_paused = true)]
async fn a_call_keeps_its_connection_for_as_long_as_somebody_answers_pings() {
    let (says, mut hears) = mpsc::unbounded_channel();
    let (mut calls, driver, _stop, connection) = client(told(says)).await;
    let (answer, mut body) = calls.send_request(request(), false).unwrap();
    let mut answer = answer.await.unwrap().into_body();
    sleep(IDLE * 10).await;
    assert!(!connection.is_finished());
    body.send_data(Bytes::from_static(b"go on"), true).unwrap();
    assert_eq!(answer.data().await.unwrap().unwrap(), "done");

    let (answer, _body) = calls.send_request(request(), false).unwrap();
    answer.await.unwrap();
    let before = Instant::now();
    driver.abort(); // it took the other end along
    connection.await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(1));
    for said in ["begun", "ended", "begun", "ended"] {
        assert_eq!(hears.recv().await, Some(said), "calls are told that their connection is gone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_outlives_its_last_call_by_half_of_what_is_idle() {
    let (says, _hears) = mpsc::unbounded_channel();
    let (mut calls, _driver, _stop, connection) = client(told(says)).await;
    let (answer, mut body) = calls.send_request(request(), false).unwrap();
    let mut answer = answer.await.unwrap().into_body();
    sleep(IDLE * 2 + IDLE / 2 - Duration::from_secs(1)).await; // just before it is looked at
    body.send_data(Bytes::from_static(b"go on"), true).unwrap();
    assert_eq!(answer.data().await.unwrap().unwrap(), "done");
    sleep(IDLE / 2).await;
    assert!(!connection.is_finished());
    timeout(IDLE, connection).await.expect("it is idle now").unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_answers_no_ping_is_dead() {
    let (says, _hears) = mpsc::unbounded_channel();
    let (io, _stop, connection) = connect(told(says));
    let (mut calls, mut driver) = client::handshake::<_>(io).await.unwrap();
    let (answer, _body) = calls.send_request(request(), false).unwrap();
    tokio::select! {
        answer = answer => drop(answer.unwrap()),
        _ = &mut driver => unreachable!("the connection lives"),
    }
    let before = Instant::now();
    connection.await.unwrap(); // nobody drives the other end any more
    let limit = KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT + Duration::from_secs(6);
    assert!(before.elapsed() < limit, "{:?}", before.elapsed());
    drop(driver);
}

#[tokio::test(start_paused = true)]
async fn what_runs_may_finish_when_the_replica_stops() {
    let (says, mut hears) = mpsc::unbounded_channel();
    let (mut calls, _driver, stop, connection) = client(told(says)).await;
    let (answer, mut body) = calls.send_request(request(), false).unwrap();
    let mut answer = answer.await.unwrap().into_body();
    stop.cancel();
    sleep(Duration::from_secs(1)).await;
    let another = async { calls.clone().ready().await?.send_request(request(), true)?.0.await.map(drop) };
    assert!(another.await.is_err(), "nothing new");
    body.send_data(Bytes::from_static(b"go on"), true).unwrap();
    assert_eq!(answer.data().await.unwrap().unwrap(), "done");
    timeout(Duration::from_secs(1), connection).await.expect("over with its last call").unwrap();
    assert_eq!((hears.recv().await, hears.recv().await), (Some("begun"), Some("ended")));
}

#[tokio::test(start_paused = true)]
async fn a_path_that_nothing_serves_is_answered() {
    let serve = |request, respond| tonic_call::serve_with_tonic(Routes::default(), request, respond).boxed();
    let (mut calls, _driver, _stop, _connection) = client(serve).await;
    let answer = calls.send_request(request(), true).unwrap().0.await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
}
