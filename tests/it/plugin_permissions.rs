//! Permissions are RabbitMQ's: a client may do what its user may, and a refusal ends its session and leaves nothing behind.

use crate::support::dialect::{DIALECTS, Dialect, RABBITMQ};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// A RabbitMQ user for one test. It goes with the private broker.
struct User {
    name: String,
}

impl User {
    /// With configure, write and read permission on what these patterns match.
    fn new(permissions: [&str; 3]) -> User {
        let name = unique("user");
        Rabbit::shared().add_user(&name, "secret", "/", permissions);
        User { name }
    }

    fn permit(&self, [configure, write, read]: [&str; 3]) {
        Rabbit::shared().ctl(&["set_permissions", "-p", "/", &self.name, configure, write, read]);
    }

    /// Topics of `amq.topic` that begin with the user's name and `.Authorised`.
    fn permit_topics(&self) {
        let pattern = "^{username}\\.Authorised";
        Rabbit::shared().ctl(&["set_topic_permissions", "-p", "/", &self.name, "amq.topic", pattern, pattern]);
    }

    async fn login(&self, relay: &Relay, dialect: Dialect) -> Client {
        dialect.login(relay, &self.name, "secret").await
    }
}

/// The frame is refused by the broker, and the session has ended.
async fn is_refused(mut client: Client, frame: &str, what: &str) {
    client.send(frame).await;
    let error = client.error("access_refused").await;
    let body = String::from_utf8_lossy(&error.body);
    assert!(body.starts_with("ACCESS_REFUSED - ") && body.contains(what), "{body} does not name {what}");
    assert_eq!(client.closed().await.0, 1008);
}

/// SEND needs write permission on the exchange.
#[tokio::test]
async fn a_send_needs_write_permission() {
    let user = User::new([".*", "^nothing$", ".*"]);
    for settings in ["", RABBITMQ] {
        let relay = Relay::start_with(Rabbit::shared(), settings);
        for dialect in DIALECTS {
            for (destination, exchange) in
                [("/amq/queue/any", "amq.default"), ("/exchange/amq.direct/any", "amq.direct")]
            {
                let client = user.login(&relay, dialect).await;
                let send = format!("SEND\ndestination:{destination}\n\nhello");
                is_refused(
                    client,
                    &send,
                    &format!("exchange '{exchange}' in vhost '/' refused for user '{}'", user.name),
                )
                .await;
            }
        }
    }
}

/// A queue may dead-letter to an exchange only if its user may write to that.
#[tokio::test]
async fn a_dead_letter_exchange_needs_write_permission() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    let space = unique("space");
    let user = User::new([&format!("^{space}.*")[..]; 3]);
    for dialect in DIALECTS {
        let (without, with, refused) = (format!("{space}-1"), format!("{space}-2"), format!("{space}-3"));
        let mut client = user.login(&relay, dialect).await;
        client.subscribe(&format!("id:1\ndestination:/queue/{without}\ndurable:true")).await;
        client.subscribe(&format!("id:2\ndestination:/queue/{with}\nx-dead-letter-exchange:{space}-dlx")).await;
        let restricted =
            format!("SUBSCRIBE\nid:3\ndestination:/queue/{refused}\nx-dead-letter-exchange:restricted\n\n");
        is_refused(client, &restricted, "exchange 'restricted'").await;
        assert_eq!(admin.ready(&refused).await, None, "nothing was declared");
        admin.delete(&without).await;
        admin.delete(&with).await;
    }
}

/// A right that was taken away is gone: UNSUBSCRIBE may then not delete the durable queue.
#[tokio::test]
async fn a_durable_unsubscribe_needs_configure_permission() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    let user = User::new([".*"; 3]);
    let mut clients = Vec::new();
    for dialect in DIALECTS {
        let queue = unique("durable");
        let mut client = user.login(&relay, dialect).await;
        let durable =
            format!("id:0\ndestination:/topic/{queue}\ndurable:true\nauto-delete:false\nx-queue-name:{queue}");
        client.subscribe(&durable).await;
        // RabbitMQ remembers the last 12 permissions that a channel was granted.
        for number in 0..6 {
            client.subscribe(&format!("id:x\ndestination:/topic/{queue}.{number}")).await;
            client.send("UNSUBSCRIBE\nid:x\nreceipt:u\n\n").await;
            client.receipt("u").await;
        }
        clients.push((client, queue));
    }
    user.permit(["^nothing$", ".*", ".*"]);
    for (client, queue) in clients {
        is_refused(client, "UNSUBSCRIBE\nid:0\ndurable:true\nreceipt:u\n\n", &format!("queue '{queue}'")).await;
        assert_eq!(admin.ready(&queue).await, Some(0), "it is still there");
        admin.delete(&queue).await;
    }
}

/// Topic permissions of RabbitMQ hold for SEND, and `{username}` in them is who logged in.
#[tokio::test]
async fn a_send_needs_topic_permission() {
    let relay = Relay::start(Rabbit::shared());
    let user = User::new([".*"; 3]);
    user.permit_topics();
    let name = &user.name;
    for dialect in DIALECTS {
        let mut receiver = dialect.guest(&relay).await;
        receiver.subscribe(&format!("id:0\ndestination:/topic/{name}.#")).await;
        let mut client = user.login(&relay, dialect).await;
        client.send(&format!("SEND\ndestination:/topic/{name}.AuthorisedTopic\nreceipt:r\n\npermitted")).await;
        client.receipt("r").await;
        receiver.message("permitted").await;
        let restricted = format!("SEND\ndestination:/topic/{name}.RestrictedTopic\n\nrefused");
        is_refused(client, &restricted, &format!("topic '{name}.RestrictedTopic' in exchange 'amq.topic'")).await;
        receiver.disconnect().await;
    }
}

/// And for SUBSCRIBE; the queue that was declared for it is deleted again.
#[tokio::test]
async fn a_subscription_needs_topic_permission() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    let user = User::new([".*"; 3]);
    user.permit_topics();
    let name = &user.name;
    for dialect in DIALECTS {
        let queue = unique("topic");
        let mut client = user.login(&relay, dialect).await;
        client.subscribe(&format!("id:0\ndestination:/topic/{name}.AuthorisedTopic")).await;
        client.send(&format!("SEND\ndestination:/topic/{name}.AuthorisedTopic\n\npermitted")).await;
        client.message("permitted").await;
        let restricted = format!(
            "SUBSCRIBE\nid:1\ndestination:/topic/{name}.RestrictedTopic\nx-queue-name:{queue}\nauto-delete:false\n\n"
        );
        is_refused(client, &restricted, &format!("topic '{name}.RestrictedTopic' in exchange 'amq.topic'")).await;
        assert_eq!(admin.ready(&queue).await, None);
    }
}

/// A subscription to an exchange needs read permission on the exchange and write permission on its queue. Without one of
/// them no queue and so no binding stays; with both it works.
#[tokio::test]
async fn a_subscription_to_an_exchange_needs_its_permissions() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    let exchange = unique("exchange");
    admin.exchange(&exchange, lapin::ExchangeKind::Direct).await;
    let both = format!("^({exchange}|q-.*)$");
    let unreadable = User::new([".*", ".*", "^q-.*$"]);
    let unwritable = User::new([".*", &format!("^{exchange}$"), &both]);
    let permitted = User::new([".*", &both, &both]);
    for dialect in DIALECTS {
        let queue = unique("q");
        let headers = format!("id:0\ndestination:/exchange/{exchange}/key\nx-queue-name:{queue}\nauto-delete:true");
        let subscribe = format!("SUBSCRIBE\n{headers}\n\n");
        let client = unreadable.login(&relay, dialect).await;
        is_refused(client, &subscribe, &format!("exchange '{exchange}'")).await;
        assert_eq!(admin.ready(&queue).await, None);
        let client = unwritable.login(&relay, dialect).await;
        is_refused(client, &subscribe, &format!("queue '{queue}'")).await;
        assert_eq!(admin.ready(&queue).await, None);

        let mut client = permitted.login(&relay, dialect).await;
        client.subscribe(&headers).await;
        client.send(&format!("SEND\ndestination:/exchange/{exchange}/key\n\nhello")).await;
        assert_eq!(client.message("hello").await.header("destination"), Some(&*format!("/exchange/{exchange}/key")));
        client.disconnect().await;
    }
    admin.channel.exchange_delete(exchange.into(), Default::default()).await.expect("the exchange is deleted");
}
