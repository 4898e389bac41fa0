//! Sharing skips no permission: RabbitMQ is asked for everyone who joins, and from time to time while there are members.

use super::*;
use crate::support::rabbit::Admin;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions};

/// Of the relays here: nobody waits for a minute.
const RECHECK: &str = "[auth]\nrecheck = \"1s\"\n";

fn permit(place: &Place, read: &str) {
    place.rabbit.set_permissions(&place.name, &place.name, [".*", ".*", read]);
}

/// A connection of the place's own user, which may do everything at first.
async fn admin(place: &Place) -> Admin {
    place.rabbit.admin_of(&place.name, &place.name, "secret").await
}

async fn make_exchange(admin: &Admin, name: &str) {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let made = admin.channel.exchange_declare(name.into(), lapin::ExchangeKind::Topic, options, Default::default());
    made.await.expect("the exchange is made");
}

async fn delete_exchange(admin: &Admin, name: &str) {
    let gone = admin.channel.exchange_delete(name.into(), ExchangeDeleteOptions::default());
    gone.await.expect("the exchange is deleted");
}

/// Two subscribers of one shared queue behind a relay, and the one who would be the third.
async fn subscribers(relay: &Relay, place: &Place, destination: &str) -> [Client; 3] {
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(relay.client_with(&place.connect()).await);
    }
    for client in &mut clients[..2] {
        client.subscribe(&format!("id:1\ndestination:{destination}")).await;
    }
    clients.try_into().ok().expect("three")
}

async fn is_refused(client: &mut Client, destination: &str, message: &str) {
    client.send(&format!("SUBSCRIBE\nid:1\ndestination:{destination}\nreceipt:s\n\n")).await;
    let error = client.error(message).await;
    assert_eq!(error.header("receipt-id"), Some("s"), "{error:?}");
}

async fn is_ended(client: &mut Client, message: &str) {
    let error = client.error(message).await;
    assert_eq!(error.header("subscription"), Some("1"), "{error:?}");
    assert_eq!(client.closed().await.0, 1008);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_after_the_right_was_withdrawn_is_refused_and_the_members_end() {
    // Longer than the test: it is the join that has RabbitMQ asked.
    for read in ["^$", "^stomp-", "^amq\\.topic$"] {
        let place = Place::new();
        let relay = Relay::start_with(place.rabbit, "[auth]\nrecheck = \"10m\"\n");
        let [mut first, mut second, mut late] = subscribers(&relay, &place, "/topic/t").await;
        tokio::task::block_in_place(|| permit(&place, read));
        // What RabbitMQ permitted on a channel is forgotten a second later.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        is_refused(&mut late, "/topic/t", "access_refused").await;
        is_ended(&mut first, "access_refused").await;
        is_ended(&mut second, "access_refused").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_permission_that_is_withdrawn_counts_too() {
    let place = Place::new();
    let relay = Relay::start_with(place.rabbit, RECHECK);
    let permit = |read: &str| {
        let name = &place.name;
        place.rabbit.ctl(&["set_topic_permissions", "-p", name, name, "amq.topic", ".*", read]);
    };
    tokio::task::block_in_place(|| permit("^mine"));
    let [mut mine, ..] = subscribers(&relay, &place, "/topic/mine").await;
    let mut third = relay.client_with(&place.connect()).await;
    third.subscribe("id:1\ndestination:/topic/mine").await;
    tokio::task::block_in_place(|| permit("^yours"));
    is_ended(&mut mine, "access_refused").await;
    is_ended(&mut third, "access_refused").await;
    let mut late = relay.client_with(&place.connect()).await;
    is_refused(&mut late, "/topic/mine", "access_refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_end_soon_after_their_right_was_withdrawn() {
    let place = Place::new();
    let relay = Relay::start_with(place.rabbit, RECHECK);
    let [mut first, mut second, _] = subscribers(&relay, &place, "/topic/t").await;
    let mut other = relay.client().await;
    other.subscribe("id:1\ndestination:/topic/t").await;
    tokio::task::block_in_place(|| permit(&place, "^$"));
    is_ended(&mut first, "access_refused").await;
    is_ended(&mut second, "access_refused").await;
    // Another user's subscriptions have nothing to do with it.
    other.send("SEND\ndestination:/topic/t\n\nwell").await;
    other.message("well").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_was_deleted_is_told_at_once_to_who_joins_and_to_the_members() {
    let place = Place::new();
    let admin = admin(&place).await;
    make_exchange(&admin, "news").await;
    let relay = Relay::start_with(place.rabbit, "[auth]\nrecheck = \"10m\"\n");
    let [mut first, mut second, mut late] = subscribers(&relay, &place, "/exchange/news/k").await;
    delete_exchange(&admin, "news").await;
    is_refused(&mut late, "/exchange/news/k", "not_found").await;
    is_ended(&mut first, "not_found").await;
    is_ended(&mut second, "not_found").await;
    make_exchange(&admin, "news").await;
    let mut again = relay.client_with(&place.connect()).await;
    again.subscribe("id:1\ndestination:/exchange/news/k").await;
    again.send("SEND\ndestination:/exchange/news/k\n\nback").await;
    again.message("back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_an_exchange_that_was_deleted_end() {
    let place = Place::new();
    let admin = admin(&place).await;
    make_exchange(&admin, "news").await;
    let relay = Relay::start_with(place.rabbit, RECHECK);
    let [mut first, mut second, _] = subscribers(&relay, &place, "/exchange/news/k").await;
    delete_exchange(&admin, "news").await;
    is_ended(&mut first, "not_found").await;
    is_ended(&mut second, "not_found").await;
}

/// An exchange that was made again between two questions, or a binding that somebody took away.
#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_is_gone_is_made_anew() {
    let place = Place::new();
    let admin = admin(&place).await;
    make_exchange(&admin, "news").await;
    let relay = Relay::start_with(place.rabbit, RECHECK);
    let [mut first, mut second, mut talker] = subscribers(&relay, &place, "/exchange/news/k").await;
    // In one call of the broker, so that no question falls between.
    let again = format!(
        "X = rabbit_misc:r(<<\"{0}\">>, exchange, <<\"news\">>), rabbit_exchange:delete(X, false, <<\"test\">>), \
         rabbit_exchange:declare(X, topic, true, false, false, [], <<\"test\">>).",
        place.name
    );
    tokio::task::block_in_place(|| place.rabbit.ctl(&["eval", &again]));
    let end = Instant::now() + PATIENCE;
    let mut number = 0;
    // What is sent before the next question is lost, so it is sent until one comes.
    while Instant::now() < end {
        talker.send(&format!("SEND\ndestination:/exchange/news/k\nreceipt:{number}\n\n{number}")).await;
        talker.receipt(&number.to_string()).await;
        number += 1;
        let heard = tokio::time::timeout(Duration::from_millis(100), first.expect("MESSAGE")).await;
        if heard.is_ok() {
            second.expect("MESSAGE").await;
            return;
        }
    }
    panic!("the subscribers get nothing more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_joins_at_once_shares_its_proofs_and_loses_nothing() {
    let place = Place::new();
    let mut first = place.lease().await;
    join(&mut first, KEY, "t").await;
    let mut crowd = place.leases(500).await;
    join_all(crowd.iter_mut().map(|channel| join(channel, KEY, "t"))).await;
    assert_eq!((place.queues(), place.consumers()), (1, 1));
    let mut publisher = place.lease().await;
    publish(&mut publisher, "t", 1).await;
    for channel in crowd.iter_mut().chain([&mut first]) {
        assert_eq!(number(channel).await, 1);
    }
    drop((crowd, first, publisher));
    place.no_queues().await;
}
