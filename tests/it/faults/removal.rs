//! What a client uses is taken away at the broker: its queue, its user, its rights, its virtual host. It is told why; clients
//! beside it notice nothing.

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// A client that listens to a topic and must go on doing so.
struct Neighbour {
    client: Client,
    topic: String,
}

impl Neighbour {
    async fn new(relay: &Relay, headers: &str) -> Neighbour {
        let (mut client, topic) = (relay.client_with(headers).await, unique("/topic/neighbour"));
        client.subscribe(&format!("id:n\ndestination:{topic}")).await;
        Neighbour { client, topic }
    }

    /// Sends to itself and gets it: both its links live, and nothing else came.
    async fn is_well(&mut self) {
        self.client.send(&format!("SEND\ndestination:{}\n\nwell", self.topic)).await;
        self.client.message("well").await;
    }
}

fn headers(user: &str, vhost: &str) -> String {
    format!("accept-version:1.2\nhost:{vhost}\nlogin:{user}\npasscode:secret")
}

const EVERYTHING: [&str; 3] = [".*", ".*", ".*"];

#[tokio::test]
async fn a_queue_is_deleted_under_its_consumer() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let mut neighbour = Neighbour::new(&relay, "accept-version:1.2\nhost:/\nlogin:guest\npasscode:guest").await;
    let queue = unique("doomed");
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/queue/{queue}")).await;
    rabbit.ctl(&["delete_queue", &queue]);
    let error = client.error("Server cancelled subscription").await;
    assert_eq!((error.header("subscription"), error.header("error-code")), (Some("0"), Some("subscription.cancelled")));
    assert_eq!(client.closed().await.0, 1011);
    neighbour.is_well().await;
}

#[tokio::test]
async fn a_user_is_deleted() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let (doomed, other) = (unique("doomed"), unique("other"));
    rabbit.add_user(&doomed, "secret", "/", EVERYTHING);
    rabbit.add_user(&other, "secret", "/", EVERYTHING);
    let mut neighbour = Neighbour::new(&relay, &headers(&other, "/")).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = relay.client_with(&headers(&doomed, "/")).await;
        client.subscribe(&format!("id:0\ndestination:/topic/{doomed}")).await;
        clients.push(client);
    }
    rabbit.ctl(&["delete_user", &doomed]);
    for client in &mut clients {
        let error = client.error("access_refused").await;
        assert_eq!(error.header("error-code"), Some("broker.access_refused"));
        assert_eq!(client.closed().await.0, 1008);
    }
    neighbour.is_well().await;
    rabbit.ctl(&["delete_user", &other]);
}

#[tokio::test]
async fn a_permission_is_revoked() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let user = unique("revoked");
    rabbit.add_user(&user, "secret", "/", EVERYTHING);
    let mut neighbour = Neighbour::new(&relay, &headers(&user, "/")).await;
    neighbour.is_well().await;
    rabbit.set_permissions(&user, "/", ["^stomp-.*", "^amq\\.topic$", ".*"]);
    // On a channel of its own, so that no older answer of the broker holds.
    let mut client = relay.client_with(&headers(&user, "/")).await;
    client.send("SEND\ndestination:/exchange/amq.direct/x\nreceipt:r\n\n").await;
    let error = client.error("access_refused").await;
    assert_eq!((error.header("receipt-id"), error.header("error-code")), (Some("r"), Some("broker.access_refused")));
    assert_eq!(client.closed().await.0, 1008);
    neighbour.is_well().await;
    rabbit.ctl(&["delete_user", &user]);
}

#[tokio::test]
async fn a_virtual_host_is_deleted() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let (user, vhost) = (unique("user"), unique("vhost"));
    rabbit.ctl(&["add_vhost", &vhost]);
    rabbit.add_user(&user, "secret", "/", EVERYTHING);
    rabbit.set_permissions(&user, &vhost, EVERYTHING);
    let mut neighbour = Neighbour::new(&relay, &headers(&user, "/")).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = relay.client_with(&headers(&user, &vhost)).await;
        client.subscribe("id:0\ndestination:/topic/x").await;
        clients.push(client);
    }
    rabbit.ctl(&["delete_vhost", &vhost]);
    for client in &mut clients {
        let error = client.error("access_refused").await;
        assert_eq!(error.header("error-code"), Some("broker.access_refused"));
        assert_eq!(client.closed().await.0, 1008);
    }
    neighbour.is_well().await;
    rabbit.ctl(&["delete_user", &user]);
}
