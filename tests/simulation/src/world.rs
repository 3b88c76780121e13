//! The machines, the wires between them, and time.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use seks_control_plane::{Distribution, registry::Registry, store::Store};
use seks_data_plane::{sync::simulation::Dial, table::Table};
use tonic::transport::Endpoint;

use crate::{
    fixtures::Fixtures,
    host::{Hold, Host},
    network::{HostId, Network},
    oracle::{Oracle, Watched},
    plane::{self, Certificates, Serving},
    random::Random,
    store::{Client, Cluster, Defect},
};

/// How long every host runs before the next does: messages take longer than that. Hosts agree on
/// the order of things up to this; clocks differ by less than is allowed for, so that it doesn't
/// matter to leases ([`RATES`]).
pub(crate) const TICK: Duration = Duration::from_millis(40);
/// Slowest and fastest clock. Ten percent of one another are allowed; a lease of two seconds leaves
/// two ticks between.
const RATES: (f64, f64) = (0.975, 1.025);
/// The store's place among the hosts.
pub(crate) const STORE: HostId = 0;

/// What a machine is for.
pub(crate) enum Program {
    Store,
    Replica(Serving),
    Node(Watched),
}

pub(crate) struct Machine {
    pub(crate) host: Option<Host>,
    pub(crate) program: Program,
    rate: f64,
    /// How often it was started.
    pub(crate) starts: u32,
}

/// See the module.
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) network: Network,
    pub(crate) cluster: Cluster,
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) replicas: Vec<HostId>,
    pub(crate) nodes: Vec<HostId>,
    pub(crate) certificates: Certificates,
    /// A clone says that it is one.
    named: bool,
    pub(crate) lease: Duration,
    random: Random,
}

impl World {
    pub(crate) fn new(
        mut random: Random,
        (replicas, nodes, clone): (usize, usize, bool),
        lease: Duration,
        quiet: bool,
        defect: Option<Defect>,
    ) -> Self {
        let network = Network::new(random.fork());
        let cluster = Cluster::new(STORE, Fixtures::get().contents.clone(), defect);
        let (first, total) = (1 + replicas, 1 + replicas + nodes);
        let certificates = Certificates { clone: clone.then_some((total, first)) };
        let mut world = Self {
            now: Duration::ZERO,
            network,
            cluster,
            oracle: Arc::default(),
            machines: Vec::new(),
            replicas: (1..first).collect(),
            nodes: (first..total).collect(),
            certificates,
            named: defect != Some(Defect::ClonesUnnamed),
            lease,
            random,
        };
        for host in 0..total + usize::from(clone) {
            let rate = RATES.0 + (RATES.1 - RATES.0) * world.random.fraction();
            world.machines.push(Machine { host: None, program: Program::Store, rate, starts: 0 });
            for other in 0..host {
                world.rewire(host, other, quiet);
            }
        }
        (1..total).for_each(|host| world.start(host));
        world
    }

    /// Draws anew how long messages between two hosts take; some wires are slow, unless `quiet`.
    pub(crate) fn rewire(&mut self, a: HostId, b: HostId, quiet: bool) {
        let most = if !quiet && self.random.percent(20) { 200 } else { 60 };
        let (least, jitter) = (self.random.millis(40..most), self.random.millis(1..most));
        self.network.set_delay(a, b, least, jitter);
    }

    /// Boots a machine that isn't running.
    pub(crate) fn start(&mut self, id: HostId) {
        self.network.set_down(id, false);
        let (seed, rate) = (self.random.next(), self.machines[id].rate);
        let host = Host::new(seed, rate, self.dial(id));
        let program =
            if self.replicas.contains(&id) { self.start_replica(id, &host) } else { self.start_node(id, &host) };
        let machine = &mut self.machines[id];
        (machine.host, machine.program) = (Some(host), program);
        machine.starts += 1;
    }

    fn start_replica(&self, id: HostId, host: &Host) -> Program {
        let serving = Serving::default();
        let client = Client { host: id, network: self.network.clone(), cluster: self.cluster.clone() };
        let (store, sealer): (Arc<dyn Store>, _) = (Arc::new(client), Fixtures::get().sealer.clone());
        let incoming = (self.network.listen(id), self.certificates);
        host.spawn(plane::replica(format!("replica-{id}"), store, sealer, self.lease, incoming, serving.clone()));
        Program::Replica(serving)
    }

    fn start_node(&mut self, id: HostId, host: &Host) -> Program {
        let table = Arc::new(Table::new().unwrap());
        let mut endpoints: Vec<String> = self.replicas.iter().map(|r| format!("https://replica-{r}:1")).collect();
        self.random.shuffle(&mut endpoints);
        let certificate = self.certificates.of(id);
        host.spawn(plane::node(certificate, if self.named { id } else { certificate }, endpoints, table.clone()));
        let name = if certificate == id { format!("node-{id}") } else { format!("the clone of node-{certificate}") };
        Program::Node(Watched::new(name, table, Fixtures::get().tokens.len()))
    }

    /// How a program on `from` connects: to the host that the endpoint names.
    fn dial(&self, from: HostId) -> Dial {
        let network = self.network.clone();
        Arc::new(move |endpoint: Endpoint| {
            let network = network.clone();
            let to = endpoint.uri().host().and_then(|host| host.strip_prefix("replica-")).and_then(|n| n.parse().ok());
            let to: HostId = to.unwrap_or(STORE);
            Box::pin(async move {
                let connector = tower::service_fn(move |_: http::Uri| {
                    let socket = network.connect(from, to);
                    async move { socket.established().await.map(TokioIo::new) }
                });
                endpoint.connect_with_connector(connector).await
            })
        })
    }

    /// The process is gone; with `power`, so is the machine: nobody is told.
    pub(crate) fn crash(&mut self, id: HostId, power: bool) {
        if power {
            self.network.set_down(id, true);
        }
        let machine = &mut self.machines[id];
        if let Program::Replica(serving) = &machine.program {
            serving.lock().take();
        }
        machine.host = None;
    }

    pub(crate) fn hold(&mut self, id: HostId, hold: Option<Hold>) {
        if let Some(host) = &mut self.machines[id].host {
            match hold {
                Some(_) => host.hold(hold),
                None => host.release(),
            }
        }
    }

    /// The machine that was cloned from another, if there is one.
    pub(crate) fn clone(&self) -> Option<HostId> {
        self.certificates.clone.map(|(clone, _)| clone)
    }

    /// A replica that serves.
    pub(crate) fn serving(&self, id: HostId) -> Option<(Distribution, Arc<Registry>)> {
        match &self.machines[id].program {
            Program::Replica(serving) => serving.lock().clone(),
            _ => None,
        }
    }

    pub(crate) fn watched(&self, id: HostId) -> Option<&Watched> {
        match &self.machines[id].program {
            Program::Node(watched) => Some(watched),
            _ => None,
        }
    }

    /// Runs every host for a tick, in an order that the seed decides, and looks at every node
    /// before and after its turn.
    pub(crate) fn step(&mut self) {
        self.now += TICK;
        self.oracle.step.fetch_add(1, SeqCst);
        self.network.deliver(self.now);
        let mut turns: Vec<HostId> = (1..self.machines.len()).collect();
        self.random.shuffle(&mut turns);
        for id in turns {
            let machine = &mut self.machines[id];
            let Some(host) = &mut machine.host else { continue };
            let oracle = &self.oracle;
            match &machine.program {
                Program::Node(watched) => {
                    host.run(TICK, |behind| oracle.look(watched, &Fixtures::get().tokens, behind))
                }
                _ => host.run(TICK, |_| ()),
            }
        }
    }
}

/// An answer that somebody waits for.
pub(crate) type Pending<T> = Arc<Mutex<Option<T>>>;
