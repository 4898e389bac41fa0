//! Places, shares and who goes first.

use std::time::Duration;

use super::*;

const UNPACED: PaceLimits = PaceLimits {
    everybody: Rate::UNLIMITED,
    each_address: Rate::UNLIMITED,
    network_factor: 2,
    wait_max: Duration::ZERO,
};

const LIMITS: ClientLimits = ClientLimits {
    connections_max: 3,
    connections_per_address_max: 2,
    connections_per_network_max: 100,
    connections_per_user_max: 1,
    network: NetworkSize { ipv4_bits: 24, ipv6_bits: 48 },
    refusals_max: 1,
    strangers_max: 100,
    stranger_timeout: Duration::from_secs(30),
    connects: UNPACED,
    handshakes: UNPACED,
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn take(clients: &Clients, peer: &str) -> Option<Place> {
    clients.take_place(address(peer), Instant::now())
}

/// A client of its own network that has logged in.
fn member(clients: &Clients, number: u8) -> Place {
    let place = take(clients, &format!("10.0.{number}.1")).unwrap();
    place.opened();
    place.take_user(&format!("user{number}")).unwrap();
    place
}

#[test]
fn beyond_the_cap_a_few_are_told_why_and_the_rest_is_not_taken() {
    let clients = Clients::new(LIMITS, Budget::default());
    let mut places: Vec<_> = (0..3).map(|number| member(&clients, number)).collect();
    assert!(places.iter().all(|place| place.refused().is_none()));
    let told = take(&clients, "192.0.2.1").unwrap();
    assert_eq!(told.refused(), Some(Limit::Connections));
    assert!(take(&clients, "192.0.2.1").is_none());
    assert_eq!((clients.count(), clients.total()), (4, 4));
    places.pop();
    assert_eq!(take(&clients, "192.0.2.1").unwrap().refused(), None, "a place was given back");
    drop((places, told));
    assert_eq!((clients.count(), clients.table().refused), (0, 0));
}

#[test]
fn the_oldest_stranger_gives_its_place_to_a_newcomer() {
    let clients = Clients::new(ClientLimits { refusals_max: 1, strangers_max: 2, ..LIMITS }, Budget::default());
    let member = member(&clients, 0);
    let [a, b] = [(); 2].map(|()| take(&clients, "192.0.2.1").unwrap());
    [&a, &b].iter().for_each(|place| place.opened());
    let c = take(&clients, "198.51.100.1").unwrap();
    assert!(a.is_evicted() && a.drain.is_cancelled() && !a.leaves_at_once(), "it is told");
    assert_eq!((clients.strangers(), clients.count(), c.refused()), (2, 4, None));
    let d = take(&clients, "198.51.100.2").unwrap();
    assert!(b.is_evicted() && b.leaves_at_once(), "there are enough of those that are told");
    assert_eq!(b.take_user("late"), Err(Limit::Strangers));
    assert!(!member.is_evicted() && !member.drain.is_cancelled());
    let counts = |table: MutexGuard<'_, Table>| (table.refused, table.leaving);
    assert_eq!(counts(clients.table()), (1, 1));
    drop((a, b, c, d, member));
    let table = clients.table();
    assert_eq!((table.refused, table.leaving, table.strangers.len(), table.clients.len()), (0, 0, 0, 0));
}

#[test]
fn who_waits_for_its_login_keeps_its_place() {
    let clients = Clients::new(ClientLimits { strangers_max: 1, ..LIMITS }, Budget::default());
    let now = Instant::now();
    let a = take(&clients, "192.0.2.1").unwrap();
    a.opened();
    a.take_address(address("192.0.2.1"), now).unwrap();
    a.take_connect(now).unwrap();
    let b = take(&clients, "192.0.2.2").unwrap();
    assert_eq!((a.is_evicted(), b.refused()), (false, Some(Limit::Connections)));
    a.was_answered();
    let c = take(&clients, "192.0.2.2").unwrap();
    assert_eq!((a.is_evicted(), c.refused()), (true, None));
}

#[tokio::test]
async fn a_stranger_without_a_websocket_ends_at_once() {
    let clients = Clients::new(ClientLimits { strangers_max: 1, ..LIMITS }, Budget::default());
    let place = take(&clients, "192.0.2.1").unwrap();
    let task = tokio::spawn(std::future::pending::<()>());
    place.served_by(task.abort_handle());
    let _other = take(&clients, "192.0.2.1").unwrap();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(place.is_evicted() && !place.drain.is_cancelled());
    // The task of one whose place was gone before it began.
    let task = tokio::spawn(std::future::pending::<()>());
    place.served_by(task.abort_handle());
    assert!(task.await.unwrap_err().is_cancelled());
}

#[test]
fn an_address_and_a_network_have_their_share_and_strangers_make_room() {
    let clients = Clients::new(
        ClientLimits { connections_max: 100, connections_per_network_max: 3, ..LIMITS },
        Budget::default(),
    );
    let now = Instant::now();
    let peers = ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.3", "198.51.100.1"];
    let places: Vec<_> = peers.map(|peer| take(&clients, peer).unwrap()).into();
    let [a, b, c, d, e] = &places[..] else { panic!() };
    for (place, user) in [(a, "a"), (b, "b")] {
        assert_eq!(place.take_address(address("192.0.2.1"), now), Ok(now));
        place.take_user(user).unwrap();
    }
    assert_eq!(c.take_address(address("192.0.2.1"), now), Err(Limit::ConnectionsOfAddress), "both are in");
    assert_eq!(c.take_address(address("192.0.2.2"), now), Ok(now));
    assert_eq!(d.take_address(address("192.0.2.3"), now), Ok(now));
    assert!(c.is_evicted(), "the network is full, and it is its oldest stranger");
    assert_eq!(e.take_address(address("198.51.100.1"), now), Ok(now));
    drop(places);
    assert!(clients.table().by_address.is_empty() && clients.table().by_network.is_empty());
}

#[test]
fn an_address_has_its_share_wherever_it_is_counted_first() {
    let clients = Clients::new(ClientLimits { connections_max: 100, ..LIMITS }, Budget::default());
    let now = Instant::now();
    let [a, b, c] = [(); 3].map(|()| take(&clients, "192.0.2.1").unwrap());
    assert_eq!(a.take_address(address("2001:db8::1"), now), Ok(now));
    assert_eq!(b.take_address(address("2001:db8::2"), now), Ok(now));
    a.take_user("a").unwrap();
    b.take_user("b").unwrap();
    assert_eq!(c.take_address(address("2001:db8::3"), now), Err(Limit::ConnectionsOfAddress), "the same /64");
    assert_eq!(c.take_address(address("2001:db8:0:1::"), now), Ok(now));
    // A proxy's address gives way to the client's.
    assert_eq!(a.take_address(address("203.0.113.7"), now), Ok(now));
    assert_eq!(c.take_address(address("2001:db8::3"), now), Ok(now));
    drop((a, b, c));
    assert!(clients.table().by_address.is_empty());
}

#[test]
fn a_user_has_its_share_and_may_log_in_again() {
    let clients = Clients::new(LIMITS, Budget::default());
    let [a, b] = [(); 2].map(|()| take(&clients, "192.0.2.1").unwrap());
    assert_eq!((a.take_user("alice"), a.take_user("alice")), (Ok(()), Ok(())));
    assert_eq!(b.take_user("alice"), Err(Limit::ConnectionsOfUser));
    assert_eq!(b.take_user("bob"), Ok(()));
    drop(a);
    assert_eq!(b.take_user("alice"), Ok(()));
    drop(b);
    assert!(clients.table().by_user.is_empty());
}

#[test]
fn those_who_are_told_why_are_bounded() {
    let clients = Clients::new(LIMITS, Budget::default());
    let [a, b] = [(); 2].map(|()| take(&clients, "192.0.2.1").unwrap());
    assert!(a.refuse(Limit::HandshakeRate) && a.refuse(Limit::ConnectionsOfAddress));
    assert_eq!(a.refused(), Some(Limit::HandshakeRate));
    assert!(!b.refuse(Limit::HandshakeRate));
    drop(a);
    assert!(b.refuse(Limit::HandshakeRate));
}

#[test]
fn warnings_are_paced() {
    let (clients, now) = (Clients::new(LIMITS, Budget::default()), Instant::now());
    assert_eq!((0..100).filter(|_| clients.may_warn(now)).count(), 5);
    assert!(clients.may_warn(now + Duration::from_secs(1)));
}

#[test]
fn new_limits_hold_at_once() {
    let clients = Clients::new(LIMITS, Budget::default());
    let _places: Vec<_> = (0..3).map(|number| member(&clients, number)).collect();
    clients.set_limits(ClientLimits { connections_max: 4, refusals_max: 0, ..LIMITS });
    assert!(take(&clients, "192.0.2.1").is_some_and(|place| place.refused().is_none()));
    clients.set_limits(ClientLimits { connections_max: 1, refusals_max: 0, ..LIMITS });
    assert!(take(&clients, "192.0.2.1").is_none());
}
