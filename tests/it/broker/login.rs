//! Logins: RabbitMQ judges them, and is asked again.

use super::*;

/// RabbitMQ ends the connection when the login's frame is too large, and the node would count as down for everybody.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_too_long_are_the_clients_own_mistake() {
    let limit = BrokerConfig::default().credentials_bytes_max;
    let broker = broker();
    for bytes in [limit, limit + 1, 100_000] {
        let passcode = credentials("guest", &"p".repeat(bytes - "guest".len()));
        assert_eq!(login_error(&broker, "/", passcode).await, LoginFailure::AccessRefused, "{bytes} bytes");
        let login = credentials(&"é".repeat(bytes / 2), "");
        assert_eq!(login_error(&broker, "/", login).await, LoginFailure::AccessRefused, "{bytes} bytes");
        close(lease(&broker).await).await;
    }
    let config = BrokerConfig {
        credentials_bytes_max: 1 << 20,
        login_wait: Duration::ZERO,
        ..config(&[Rabbit::shared().amqp_port()])
    };
    let unbounded = Broker::new(config).expect("the configuration is fine");
    let failure = login_error(&unbounded, "/", credentials("guest", &"p".repeat(100_000))).await;
    assert!(matches!(failure, LoginFailure::Unavailable { .. }), "the limit is of use: {failure:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn login_is_judged_by_the_broker() {
    let rabbit = Rabbit::shared();
    let broker = broker();
    let (user, vhost) = (unique("user"), unique("vhost"));
    rabbit.ctl(&["add_vhost", &vhost]);
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);

    let (channel, info) = broker.login("/", &guest(), &ClientLabel::default()).await.expect("guest is let in");
    assert!(info.version.starts_with(|first: char| first.is_ascii_digit()), "{info:?}");
    assert_eq!(login_error(&broker, "/", credentials("guest", "wrong")).await, LoginFailure::AccessRefused);
    assert_eq!(login_error(&broker, "/", credentials("nobody", "guest")).await, LoginFailure::AccessRefused);
    assert_eq!(login_error(&broker, "/", credentials("guest\0x", "guest")).await, LoginFailure::AccessRefused);
    for (vhost, credentials) in [("no such vhost", guest()), (vhost.as_str(), credentials(&user, "secret"))] {
        let failure = login_error(&broker, vhost, credentials).await;
        assert!(
            matches!(&failure, LoginFailure::VirtualHost { reply_text } if reply_text.starts_with("NOT_ALLOWED - ")),
            "{vhost}: {failure:?}"
        );
    }
    let long = "v".repeat(300);
    assert!(matches!(login_error(&broker, &long, guest()).await, LoginFailure::VirtualHost { .. }));
    broker.probe().await.expect("the broker is there");

    let roles = broker.status().links.iter().map(|link| link.role).collect::<Vec<_>>();
    assert_eq!(roles, [Role::Consume]);
    close(channel).await;
    broker.shutdown().await;
    assert!(broker.status().links.is_empty());
    assert!(matches!(login_error(&broker, "/", guest()).await, LoginFailure::Unavailable { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_passcode_is_noticed_at_the_next_check() {
    let rabbit = Rabbit::shared();
    let user = unique("user");
    rabbit.add_user(&user, "old", "/", [".*", ".*", ".*"]);
    let rarely = broker();
    let config = BrokerConfig { recheck: Duration::ZERO, ..config(&[rabbit.amqp_port()]) };
    let always = Broker::new(config).expect("the configuration is fine");
    let old = credentials(&user, "old");
    let label = ClientLabel::default();
    let (first, _) = rarely.login("/", &old, &label).await.expect("let in");
    let (mut second, _) = always.login("/", &old, &label).await.expect("let in");
    rabbit.ctl(&["change_password", &user, "new"]);

    rarely.login("/", &old, &label).await.expect("the last check is not old enough");
    assert_eq!(login_error(&rarely, "/", credentials(&user, "other")).await, LoginFailure::AccessRefused);
    assert_eq!(login_error(&always, "/", old.clone()).await, LoginFailure::AccessRefused);
    always.login("/", &credentials(&user, "new"), &label).await.expect("the new passcode is right");
    // A session that is in is told.
    assert!(matches!(next(&mut second).await, BrokerEvent::Dismissed { .. }));
    close(first).await;
}
