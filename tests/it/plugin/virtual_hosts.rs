//! Which virtual host a client comes to: by `host`, by the configured names, or always the same one.

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;

/// The broker names the virtual host itself when a queue is missing in it.
async fn arrives_in(relay: &Relay, host: &str, vhost: &str) {
    let mut client = relay.client_with(&format!("accept-version:1.2\nlogin:guest\npasscode:guest\n{host}")).await;
    client.send("SUBSCRIBE\nid:0\ndestination:/amq/queue/missing\n\n").await;
    let error = client.error("not_found").await;
    let body = String::from_utf8_lossy(&error.body).into_owned();
    assert!(body.starts_with(&format!("NOT_FOUND - no queue 'missing' in vhost '{vhost}'")), "{host}: {body}");
}

#[tokio::test]
async fn the_host_header_chooses_the_virtual_host() {
    let rabbit = Rabbit::shared();
    let name = unique("vhost");
    rabbit.ctl(&["add_vhost", &name]);
    rabbit.ctl(&["set_permissions", "-p", &name, "guest", ".*", ".*", ".*"]);

    let relay = Relay::start(rabbit);
    arrives_in(&relay, "", "/").await;
    arrives_in(&relay, "host:/\n", "/").await;
    arrives_in(&relay, &format!("host:{name}\n"), &name).await;

    let mapped =
        format!("[broker]\nvhost = \"{name}\"\nvhosts = {{ \"chat.example.com\" = \"{name}\", front = \"/\" }}\n");
    let relay = Relay::start_with(rabbit, &mapped);
    arrives_in(&relay, "", &name).await;
    arrives_in(&relay, "host:chat.example.com\n", &name).await;
    arrives_in(&relay, "host:front\n", "/").await;
    arrives_in(&relay, "host:/\n", "/").await;

    let relay = Relay::start_with(rabbit, &format!("[broker]\nvhost = \"{name}\"\nignore_host = true\n"));
    arrives_in(&relay, "", &name).await;
    arrives_in(&relay, "host:/\n", &name).await;
    arrives_in(&relay, "host:nowhere\n", &name).await;

    rabbit.ctl(&["delete_vhost", &name]);
}
