//! Who is connected: a count under a cap, a count per address, and a way to ask each client to leave.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Live clients; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    per_address_max: usize,
    table: Mutex<Table>,
    /// Ends requests and handshakes that are not yet a WebSocket.
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    by_address: HashMap<IpAddr, usize>,
    drains: HashMap<u64, CancellationToken>,
    next: u64,
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `limits.connections_max`
    Full,
    /// `limits.connections_per_address_max`
    FullForAddress,
}

impl Refused {
    /// As a metric shows it.
    pub fn label(self) -> &'static str {
        match self {
            Refused::Full => "limit_total",
            Refused::FullForAddress => "limit_address",
        }
    }
}

/// A client's place; given back when it is dropped, however its task ends.
#[derive(Debug)]
pub struct Place {
    address: IpAddr,
    clients: Clients,
    /// Cancelled when this client shall leave.
    pub drain: CancellationToken,
    number: u64,
}

impl Clients {
    pub fn new(max: usize, per_address_max: usize) -> Clients {
        Clients(Arc::new(Inner { max, per_address_max, table: Mutex::default(), stop: CancellationToken::new() }))
    }

    pub fn take_place(&self, address: IpAddr) -> Result<Place, Refused> {
        let mut table = self.table();
        if table.drains.len() >= self.0.max {
            return Err(Refused::Full);
        }
        let here = table.by_address.entry(address).or_default();
        if *here >= self.0.per_address_max {
            return Err(Refused::FullForAddress);
        }
        *here += 1;
        let (number, drain) = (table.next, CancellationToken::new());
        table.next += 1;
        table.drains.insert(number, drain.clone());
        Ok(Place { address, clients: self.clone(), drain, number })
    }

    pub fn count(&self) -> usize {
        self.table().drains.len()
    }

    /// Connections taken since the start.
    pub fn total(&self) -> u64 {
        self.table().next
    }

    pub fn stop_accepting(&self) {
        self.0.stop.cancel();
    }

    pub fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// The drain signals of all that are connected now.
    pub fn drains(&self) -> Vec<CancellationToken> {
        self.table().drains.values().cloned().collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.clients.table();
        table.drains.remove(&self.number);
        if let Some(here) = table.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                table.by_address.remove(&self.address);
            }
        }
    }
}
