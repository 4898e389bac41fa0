//! Sessions whose account RabbitMQ no longer accepts: they are told, also those that hold no channel.

use super::*;
use crate::support::fault_proxy::{FaultProxy, Mode};

/// A broker that asks about each identity every second.
fn watchful(port: u16) -> Broker {
    Broker::new(BrokerConfig { recheck: Duration::from_secs(1), ..config(&[port]) }).expect("the configuration is fine")
}

/// A session that holds no channel, of a user of its own.
async fn idle(broker: &Broker, vhost: &str) -> (stomp_relay::broker::Channel, String) {
    let user = unique("user");
    Rabbit::shared().add_user(&user, "secret", vhost, [".*", ".*", ".*"]);
    let shown = credentials(&user, "secret");
    (broker.login(vhost, &shown, &ClientLabel::default()).await.expect("let in").0, user)
}

async fn assert_dismissed(channel: &mut stomp_relay::broker::Channel, why: &str) {
    let event = next(channel).await;
    assert!(matches!(event, BrokerEvent::Dismissed { .. }), "{why}: {event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_is_told_that_its_user_is_gone() {
    let rabbit = Rabbit::shared();
    // The default: RabbitMQ would not be asked again within this test.
    let broker = broker();
    let vhost = unique("vhost");
    rabbit.ctl(&["add_vhost", &vhost]);
    let (mut deleted, user) = idle(&broker, "/").await;
    let (mut homeless, _) = idle(&broker, &vhost).await;
    let (mut other, _) = idle(&broker, "/").await;
    rabbit.ctl(&["delete_user", &user]);
    assert_dismissed(&mut deleted, "the user was deleted").await;
    rabbit.ctl(&["delete_vhost", &vhost]);
    assert_dismissed(&mut homeless, "the virtual host was deleted").await;
    other.execute(BrokerCommand::Close);
    assert_eq!(next(&mut other).await, BrokerEvent::Closed, "nobody else is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_is_told_of_what_only_a_check_finds() {
    let rabbit = Rabbit::shared();
    let broker = watchful(rabbit.amqp_port());
    let (mut changed, user) = idle(&broker, "/").await;
    rabbit.ctl(&["change_password", &user, "another"]);
    assert_dismissed(&mut changed, "the password was changed").await;
    let (mut banned, user) = idle(&broker, "/").await;
    rabbit.ctl(&["clear_permissions", "-p", "/", &user]);
    assert_dismissed(&mut banned, "the virtual host was taken away").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_casts_doubt_on_the_sessions_of_the_same_identity() {
    let rabbit = Rabbit::shared();
    let broker = Broker::new(BrokerConfig { recheck: Duration::ZERO, ..config(&[rabbit.amqp_port()]) }).unwrap();
    let (mut session, user) = idle(&broker, "/").await;
    // Another passcode is another identity, and says nothing of this one.
    assert_eq!(login_error(&broker, "/", credentials(&user, "guess")).await, LoginFailure::AccessRefused);
    rabbit.ctl(&["change_password", &user, "another"]);
    assert_eq!(login_error(&broker, "/", credentials(&user, "secret")).await, LoginFailure::AccessRefused);
    assert_dismissed(&mut session, "the password was changed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_an_outage_nor_a_limit_is_a_refusal() {
    let rabbit = Rabbit::shared();
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let broker = watchful(proxy.port());
    let (mut session, user) = idle(&broker, "/").await;
    let links = || broker.status().links.len();
    proxy.set(Mode::Refuse);
    proxy.cut();
    while_driving(&mut session, eventually("the link is lost", async || links() == 0)).await;
    let tried = proxy.accepted();
    while_driving(&mut session, eventually("it is tried again", async || proxy.accepted() > tried)).await;
    proxy.set(Mode::Forward);
    while_driving(&mut session, eventually("one connection stays again", async || links() == 1)).await;

    // The check needs a second connection, which the user may not have.
    rabbit.ctl(&["set_user_limits", &user, r#"{"max-connections": 1}"#]);
    let refused = || broker.status().connects.virtual_host;
    let before = refused();
    while_driving(&mut session, eventually("it was asked and refused", async || refused() >= before + 2)).await;
    session.execute(BrokerCommand::Close);
    assert_eq!(next(&mut session).await, BrokerEvent::Closed, "it was told nothing");
}
