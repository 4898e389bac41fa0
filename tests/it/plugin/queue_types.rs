//! Which type queues get where the virtual host's default is not classic.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;

const KINDS: &str = "SUBSCRIBE\nid:shared\ndestination:/topic/a\nreceipt:shared\n\n\0\
    SUBSCRIBE\nid:own\ndestination:/topic/a\nprefetch-count:5\nreceipt:own\n\n\0\
    SUBSCRIBE\nid:exchange\ndestination:/exchange/amq.direct/a\nack:client\nreceipt:exchange\n\n\0\
    SUBSCRIBE\nid:durable\ndestination:/topic/a\ndurable:true\nreceipt:durable\n\n\0\
    SUBSCRIBE\nid:transient\ndestination:/queue/transient\ndurable:false\nreceipt:transient\n\n\0\
    SEND\ndestination:/amq/queue/nowhere\nreply-to:/temp-queue/answers\n\nask";

/// `name type` of every queue in the virtual host.
fn queues(rabbit: &Rabbit, vhost: &str) -> Vec<String> {
    let table = rabbit.ctl(&["-p", vhost, "list_queues", "--no-table-headers", "name", "type", "arguments"]);
    table.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// All queues that the relay makes for subscriptions and answers are classic, and say so: what is exclusive, auto-delete or
/// transient can be nothing else, and a queue that survives a link must be as good as the one it stands for.
#[tokio::test]
async fn queues_for_subscriptions_are_classic_whatever_the_default() {
    let rabbit = Rabbit::shared();
    for (settings, shared) in [("", true), ("[subscriptions]\nsurvive = \"60s\"\n", false)] {
        let vhost = unique("quorum");
        rabbit.ctl(&["add_vhost", &vhost, "--default-queue-type", "quorum"]);
        rabbit.ctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
        let relay = Relay::start_with(rabbit, &format!("{settings}[broker]\nvhost = \"{vhost}\"\n"));
        let mut client = relay.client_with("accept-version:1.2\nlogin:guest\npasscode:guest\n").await;
        client.send(KINDS).await;
        for id in ["shared", "own", "exchange", "durable", "transient"] {
            client.receipt(id).await;
        }
        client.send("SEND\ndestination:/topic/nobody\nreceipt:sent\n\n").await;
        client.receipt("sent").await;
        let queues = queues(rabbit, &vhost);
        assert!(queues.len() >= 6, "survive {}: {queues:#?}", !shared);
        for queue in &queues {
            assert!(queue.contains("\tclassic\t") && queue.contains("\"x-queue-type\",\"classic\""), "{queue}");
        }
        client.disconnect().await;
        rabbit.ctl(&["delete_vhost", &vhost]);
    }
}

/// A durable queue that the client names is what the virtual host says, as if the client had declared it over AMQP.
#[tokio::test]
async fn durable_queues_follow_the_virtual_host() {
    let rabbit = Rabbit::shared();
    let vhost = unique("quorum");
    rabbit.ctl(&["add_vhost", &vhost, "--default-queue-type", "quorum"]);
    rabbit.ctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    let relay = Relay::start_with(rabbit, &format!("[broker]\nvhost = \"{vhost}\"\n"));
    let mut client = relay.client_with("accept-version:1.2\nlogin:guest\npasscode:guest\n").await;
    client.send("SEND\ndestination:/queue/default\nreceipt:a\n\n").await;
    client.receipt("a").await;
    client.send("SEND\ndestination:/queue/classic\nx-queue-type:classic\nreceipt:b\n\n").await;
    client.receipt("b").await;
    let types = rabbit.ctl(&["-p", &vhost, "list_queues", "--no-table-headers", "name", "type"]);
    for expected in ["default\tquorum", "classic\tclassic"] {
        assert!(types.contains(expected), "{types}");
    }
    client.disconnect().await;
    rabbit.ctl(&["delete_vhost", &vhost]);
}

/// A queue that was declared without a type, by the plugin or an earlier version, is the same queue.
#[tokio::test]
async fn a_type_that_is_named_fits_queues_that_were_declared_without() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    let cases = [
        ("/topic/a", "durable:true", true),
        ("/topic/a", "auto-delete:true", false),
        ("/queue", "auto-delete:true", true),
    ];
    for (destination, flags, durable) in cases {
        let name = unique("untyped");
        let options = QueueDeclareOptions { auto_delete: true, durable, ..QueueDeclareOptions::default() };
        admin.channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await.expect("declared");
        let destination = if destination == "/queue" { format!("/queue/{name}") } else { destination.to_owned() };
        let mut client = relay.client().await;
        client.subscribe(&format!("id:a\ndestination:{destination}\n{flags}\nx-queue-name:{name}")).await;
        client.disconnect().await;
    }
}
