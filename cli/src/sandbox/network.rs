//! The network of the strict mode: an empty network namespace with listeners on loopback in place
//! of the proxy. `seks run` stays outside. It receives these listeners and forwards their
//! connections.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketType, recvmsg, sendmsg,
};
use tokio::{net::TcpStream, sync::Semaphore};

/// Most concurrent connections of one command.
const MAX_CONNECTIONS: usize = 512;
/// Longest wait for the command's listeners after it has connected.
const HANDOVER: Duration = Duration::from_secs(10);
/// Most proxies and forward proxies.
const MAX_LISTENERS: usize = 4;

/// `/etc/hosts` for a namespace without a name server: the proxies' names resolve to loopback.
pub(super) fn hosts(forwarded: &[String]) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    let names = forwarded.iter().filter_map(|address| address.rsplit_once(':')).map(|(host, _)| host);
    for name in names.filter(|name| address(name).is_none() && *name != "localhost") {
        text.push_str(&format!("127.0.0.1 {name}\n"));
    }
    text
}

fn address(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// Starts loopback in this new network namespace, and listens on each of the addresses.
pub(super) fn listen(forwarded: &[String]) -> io::Result<Vec<TcpListener>> {
    let up = [&[0, 0, 0, 0][..], &1u32.to_ne_bytes(), &1u32.to_ne_bytes(), &1u32.to_ne_bytes()].concat(); // index 1, IFF_UP
    netlink(16, 0, &up)?; // RTM_NEWLINK
    forwarded.iter().map(|place| listener(place)).collect()
}

fn listener(place: &str) -> io::Result<TcpListener> {
    let bad = || io::Error::other(format!("`{place}` is not HOST:PORT"));
    let (host, port) = place.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().map_err(|_| bad())?;
    let ip = address(host).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    if !ip.is_loopback() {
        let (family, prefix, bytes) = match ip {
            IpAddr::V4(ip) => (2, 32, ip.octets().to_vec()),
            IpAddr::V6(ip) => (10, 128, ip.octets().to_vec()),
        };
        let mut message = vec![family, prefix, 2, 0]; // IFA_F_NODAD
        message.extend(1u32.to_ne_bytes());
        for kind in [1u16, 2] {
            message.extend(u16::try_from(bytes.len() + 4).map_err(|_| bad())?.to_ne_bytes());
            message.extend(kind.to_ne_bytes()); // IFA_ADDRESS, IFA_LOCAL
            message.extend(&bytes);
        }
        netlink(20, 0x400, &message)?; // RTM_NEWADDR, NLM_F_CREATE
    }
    TcpListener::bind(SocketAddr::new(ip, port))
}

/// Sends one request of rtnetlink(7) and reads its acknowledgement.
fn netlink(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    const REQUEST_AND_ACKNOWLEDGE: u16 = 5;
    const HEADER: usize = 16;
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | REQUEST_AND_ACKNOWLEDGE).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0; 512];
    rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let code = answer.get(HEADER..HEADER + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

/// Sends the listeners to `seks run`.
pub(super) fn hand_over(to: &UnixStream, listeners: &[TcpListener]) -> io::Result<()> {
    let descriptors: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many listeners"));
    }
    sendmsg(to, &[IoSlice::new(&[1])], &mut control, SendFlags::empty())?;
    Ok(())
}

fn take_over(from: &UnixStream) -> io::Result<Vec<TcpListener>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut found: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            found.extend(descriptors);
        }
    }
    Ok(found.into_iter().map(TcpListener::from).collect())
}

/// Where `seks run` waits for the listeners: a socket in a directory of its own, both removed when
/// this is dropped.
#[derive(Debug)]
pub(super) struct Handover {
    socket: tokio::net::UnixListener,
    path: std::path::PathBuf,
}

impl Handover {
    /// Opens it.
    pub(super) fn open() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let dir = std::env::temp_dir().join(format!("seks-run-{}-{now:x}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let path = dir.join("listeners");
        Ok(Self { socket: tokio::net::UnixListener::bind(&path)?, path })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the listeners over and forwards, until this is dropped.
    pub(super) async fn forward(self, forwarded: Vec<String>) -> io::Result<()> {
        let (stream, _) = self.socket.accept().await?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(HANDOVER))?;
        let listeners = tokio::task::spawn_blocking(move || take_over(&stream)).await.map_err(io::Error::other)??;
        drop(self);
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut tasks = tokio::task::JoinSet::new();
        for (listener, to) in listeners.into_iter().zip(forwarded) {
            listener.set_nonblocking(true)?;
            tasks.spawn(accept(tokio::net::TcpListener::from_std(listener)?, to, Arc::clone(&slots)));
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}

async fn accept(listener: tokio::net::TcpListener, to: String, slots: Arc<Semaphore>) {
    let to: Arc<str> = to.into();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((mut agent, _)) => {
                let to = Arc::clone(&to);
                tokio::spawn(async move {
                    if let Ok(mut proxy) = TcpStream::connect(&*to).await {
                        let _ = (agent.set_nodelay(true), proxy.set_nodelay(true));
                        let _ = tokio::io::copy_bidirectional(&mut agent, &mut proxy).await; // either end may go away
                    }
                    drop(slot);
                });
            }
            // Out of descriptors, or the connection is gone again.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_proxies_are_on_loopback_and_addresses_need_no_name() {
        let text = hosts(&["proxy.example:443".into(), "127.0.0.1:1".into(), "[::1]:2".into(), "localhost:3".into()]);
        assert_eq!(text, "127.0.0.1 localhost\n::1 localhost\n127.0.0.1 proxy.example\n");
    }

    #[test]
    fn listeners_are_handed_over() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listeners = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
        hand_over(&ours, &listeners).unwrap();
        let taken = take_over(&theirs).unwrap();
        let addresses = |all: &[TcpListener]| all.iter().map(|l| l.local_addr().unwrap()).collect::<Vec<_>>();
        assert_eq!(addresses(&taken), addresses(&listeners));
    }
}
