//! By which name a stand-in is known.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener, ToSocketAddrs as _},
};

/// A name, and the loopback address that this machine resolves it to.
#[derive(Clone, Debug)]
pub struct Host {
    /// As it stands in a URL.
    pub name: String,
    /// Where it is.
    pub ip: IpAddr,
}

impl Host {
    /// `127.0.0.1`.
    #[must_use]
    pub fn address() -> Self {
        Self { name: "127.0.0.1".into(), ip: Ipv4Addr::LOCALHOST.into() }
    }

    /// `localhost`, for clients that want a name.
    #[must_use]
    pub fn localhost() -> Self {
        Self { name: "localhost".into(), ..Self::address() }
    }

    /// Another name of a loopback address, as `/etc/hosts` has it (the machine's own,
    /// `ip6-localhost`, …), for clients that reach `localhost` past every proxy. `None`: this
    /// machine has none.
    #[must_use]
    pub fn of_this_machine() -> Option<Self> {
        let hosts = fs::read_to_string("/etc/hosts").ok()?;
        let lines = hosts.lines().filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            Some((words.next()?.parse::<IpAddr>().ok().filter(IpAddr::is_loopback)?, words))
        });
        let mut names = lines.flat_map(|(ip, words)| words.map(move |name| Self { name: name.to_lowercase(), ip }));
        names.find(|host| host.name != "localhost" && host.is_there())
    }

    /// It resolves to that address alone, and something can listen there.
    fn is_there(&self) -> bool {
        let found = (self.name.as_str(), 0).to_socket_addrs();
        found.is_ok_and(|mut all| all.all(|a| a.ip() == self.ip)) && TcpListener::bind((self.ip, 0)).is_ok()
    }
}
