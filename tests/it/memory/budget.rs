//! Each limit met by one client beside another that works.

use super::{has_metric, hold, is_ended, works};
use crate::support::condition::eventually;
use crate::support::process::get;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, address};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

async fn worker(relay: &Relay) -> (Client, String) {
    let (mut client, topic) = (relay.client().await, format!("/topic/{}", unique("worker")));
    client.subscribe(&format!("id:0\ndestination:{topic}")).await;
    (client, topic)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_beyond_its_limit_is_ended_with_the_reason() {
    let relay = Relay::start_with(
        Rabbit::shared(),
        "[limits]\nsession_bytes_max = \"12MiB\"\n[session]\ntransaction_bytes_max = \"64MiB\"\n",
    );
    let (mut neighbour, topic) = worker(&relay).await;
    let mut client = relay.client().await;
    hold(&mut client, "t", 4).await;
    is_ended(&mut client, "limit.session_memory", 1008).await;
    works(&mut neighbour, &topic).await;
    assert!(has_metric(&relay, "memory_sessions_ended_total{limit=\"session\"} 1").await);
    assert!(has_metric(&relay, "sessions_closed_total{reason=\"limit\"} 1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_user_the_largest_session_is_ended_and_no_other_users() {
    let rabbit = Rabbit::shared();
    let users = [unique("many"), unique("other")];
    users.iter().for_each(|user| rabbit.add_user(user, "secret", "/", [".*"; 3]));
    let relay = Relay::start_with(
        rabbit,
        "[limits]\nuser_bytes_max = \"32MiB\"\n[session]\ntransaction_bytes_max = \"64MiB\"\n",
    );
    let login = |user: &str| format!("login:{user}\npasscode:secret\n");
    let mut larger = relay.client_with(&login(&users[0])).await;
    hold(&mut larger, "t", 6).await;
    larger.send("BEGIN\ntransaction:u\nreceipt:held\n\n").await;
    larger.receipt("held").await;
    let mut other = relay.client_with(&login(&users[1])).await;
    hold(&mut other, "t", 7).await;
    let mut smaller = relay.client_with(&login(&users[0])).await;
    hold(&mut smaller, "t", 3).await;
    is_ended(&mut larger, "limit.user_memory", 1013).await;
    for client in [&mut smaller, &mut other] {
        client.send("ABORT\ntransaction:t\nreceipt:done\n\n").await;
        client.receipt("done").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn near_the_process_limit_newcomers_come_later_and_operators_are_answered() {
    let relay =
        Relay::start_with(Rabbit::shared(), "[limits]\nmemory_max = \"64MiB\"\nsession_bytes_max = \"32MiB\"\n");
    let (mut neighbour, topic) = worker(&relay).await;
    let mut holder = relay.client().await;
    for name in 0..6 {
        hold(&mut holder, &name.to_string(), 1).await;
    }
    holder.send("BEGIN\ntransaction:last\nreceipt:held\n\n").await;
    holder.receipt("held").await;
    let mut late = Client::open(&relay.ws).await;
    is_ended(&mut late, "limit.memory", 1013).await;
    assert!(has_metric(&relay, "connections_rejected_total{reason=\"memory\"} 1").await);
    assert_eq!(get(relay.admin, "/livez").await.status, 200);
    works(&mut neighbour, &topic).await;
    holder.disconnect().await;
    eventually("there is room again", async || {
        let mut client = Client::open(&relay.ws).await;
        client.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n").await;
        client.frame().await.command.as_str() == "CONNECTED"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_process_limit_the_largest_are_ended_and_sessions_work_on() {
    let relay =
        Relay::start_with(Rabbit::shared(), "[limits]\nmemory_max = \"64MiB\"\nsession_bytes_max = \"32MiB\"\n");
    let (mut neighbour, topic) = worker(&relay).await;
    let (mut large, mut small) = (relay.client().await, relay.client().await);
    for name in 0..5 {
        hold(&mut large, &name.to_string(), 1).await;
    }
    large.send("BEGIN\ntransaction:last\nreceipt:held\n\n").await;
    large.receipt("held").await;
    for name in 0..3 {
        hold(&mut small, &name.to_string(), 1).await;
    }
    is_ended(&mut large, "limit.memory", 1013).await;
    small.send("ABORT\ntransaction:0\nreceipt:done\n\n").await;
    small.receipt("done").await;
    works(&mut neighbour, &topic).await;
    assert!(has_metric(&relay, "memory_sessions_ended_total{limit=\"process\"} 1").await);
}

/// Who has no WebSocket can't be told why, and goes all the same.
#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_process_limit_strangers_go_too() {
    let settings =
        "[limits]\nmemory_max = \"64MiB\"\nsession_bytes_max = \"32MiB\"\n[http]\nhead_bytes_max = \"1MiB\"\n";
    let relay = Relay::start_with(Rabbit::shared(), settings);
    let (mut neighbour, topic) = worker(&relay).await;
    let mut strangers = Vec::new();
    for _ in 0..48 {
        let mut socket = TcpStream::connect(address(&relay.ws)).await.expect("the relay listens");
        // It may be closed already.
        let _ = socket.write_all(b"GET / HTTP/1.1\r\n").await;
        strangers.push(socket);
    }
    eventually("some of them have gone", async || {
        has_metric(&relay, "memory_sessions_ended_total{limit=\"process\"} 1").await
            || !has_metric(&relay, "memory_sessions_ended_total{limit=\"process\"} 0").await
    })
    .await;
    works(&mut neighbour, &topic).await;
}
