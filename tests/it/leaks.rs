//! Nothing is left behind by clients that have gone, however they went: no AMQP channel, queue or consumer, no place taken.

use tokio::task::block_in_place;

use crate::support::condition::eventually;
use crate::support::process::get;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

const CYCLES: usize = 500;
const AT_A_TIME: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn clients_leave_nothing_behind() {
    let rabbit = Rabbit::shared();
    let name = unique("leaks");
    rabbit.ctl(&["add_vhost", &name]);
    rabbit.add_user(&name, "secret", &name, [".*"; 3]);
    let relay = Relay::start(rabbit);
    let connect = format!("accept-version:1.2\nhost:{name}\nlogin:{name}\npasscode:secret");
    for first in (0..CYCLES).step_by(AT_A_TIME) {
        let cycles =
            (first..first + AT_A_TIME).map(async |number| cycle(relay.client_with(&connect).await, number).await);
        futures_util::future::join_all(cycles).await;
    }

    let own = |kind: &str| {
        let list = block_in_place(|| rabbit.ctl(&[kind, "vhost", "user", "pid"]));
        list.lines().filter(|line| line.split_whitespace().next() == Some(&name)).count()
    };
    // The last ones are still being cleaned up. All in one question: each call of rabbitmqctl takes a second, and more on a busy
    // machine.
    let count = format!(
        "io_lib:format(\"~b ~b ~b\", [length([P || P <- rabbit_channel:list(), \
         {{ok, [{{vhost, <<\"{name}\">>}}]}} <- [catch {{ok, rabbit_channel:info(P, [vhost])}}]]), \
         length(rabbit_amqqueue:list(<<\"{name}\">>)), length(rabbit_amqqueue:consumers_all(<<\"{name}\">>))])."
    );
    eventually("channels, queues and consumers are gone", async || {
        let left = block_in_place(|| rabbit.ctl(&["eval", &count]));
        println!("channels, queues and consumers left: {left}");
        left.trim().trim_matches('"') == "0 0 0"
    })
    .await;
    eventually("no place is taken", async || {
        get(relay.admin, "/metrics").await.body.contains("\nstomp_relay_connections 0\n")
    })
    .await;
    let metrics = get(relay.admin, "/metrics").await.body;
    assert!(metrics.contains(&format!("\nstomp_relay_connections_accepted_total {CYCLES}\n")), "{metrics}");
    let connections = own("list_connections");
    assert!(
        (1..=2).contains(&connections),
        "{AT_A_TIME} clients at a time fit on two AMQP connections, not {connections}"
    );
    rabbit.ctl(&["delete_vhost", &name]);
    rabbit.ctl(&["delete_user", &name]);
}

/// One client's life, with every kind of queue, and one of four ends.
async fn cycle(mut client: Client, number: usize) {
    client.subscribe(&format!("id:topic\ndestination:/topic/t{number}")).await;
    client.subscribe(&format!("id:queue\ndestination:/queue/q{number}\ndurable:false\nack:client")).await;
    client.send(&format!("SEND\ndestination:/topic/t{number}\nreply-to:/temp-queue/r\n\nhello")).await;
    let request = client.message("hello").await;
    let reply_to = request.header("reply-to").expect("a reply queue").to_owned();
    client.send(&format!("SEND\ndestination:{reply_to}\n\nreply")).await;
    client.message("reply").await;
    client.send(&format!("SEND\ndestination:/amq/queue/q{number}\n\nnever acknowledged")).await;
    client.message("never acknowledged").await;
    match number % 4 {
        0 => client.disconnect().await,
        // Gone without a word.
        1 => drop(client),
        2 => {
            client.send("NONSENSE\n\n").await;
            client.error("Bad command").await;
        }
        // By a channel exception.
        _ => {
            client.send("SUBSCRIBE\nid:none\ndestination:/amq/queue/none\n\n").await;
            client.error("not_found").await;
        }
    }
}
