//! The `user-id` of a message: RabbitMQ vouches for it, so a client can set its own only.

use crate::support::dialect::{DIALECTS, RABBITMQ};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;

/// The user's own name is passed on, and without it there is none.
#[tokio::test]
async fn the_own_user_id_is_delivered() {
    let relay = Relay::start(Rabbit::shared());
    for dialect in DIALECTS {
        let topic = format!("/topic/{}", unique("user-id"));
        let mut client = dialect.guest(&relay).await;
        client.subscribe(&format!("id:0\ndestination:{topic}")).await;
        client.send(&format!("SEND\ndestination:{topic}\nuser-id:guest\n\nnamed")).await;
        assert_eq!(client.message("named").await.header("user-id"), Some("guest"));
        client.send(&format!("SEND\ndestination:{topic}\n\nnameless")).await;
        assert_eq!(client.message("nameless").await.header("user-id"), None);
        client.disconnect().await;
    }
}

/// Another user's name ends the session, at once or at COMMIT, and nothing is delivered.
#[tokio::test]
async fn another_user_id_is_refused() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    for settings in ["", RABBITMQ] {
        let relay = Relay::start_with(rabbit, settings);
        for dialect in DIALECTS {
            let queue = unique("user-id");
            admin.queue(&queue).await;
            let send = format!("SEND\ndestination:/amq/queue/{queue}\nuser-id:hello\n");
            let frames = [
                vec![format!("{send}receipt:r\n\nhello")],
                vec![
                    "BEGIN\ntransaction:t\n\n".to_owned(),
                    format!("{send}transaction:t\n\nhello"),
                    "COMMIT\ntransaction:t\n\n".to_owned(),
                ],
            ];
            for frames in frames {
                let mut client = dialect.guest(&relay).await;
                for frame in frames {
                    client.send(&frame).await;
                }
                let error = client.error("precondition_failed").await;
                let body = String::from_utf8_lossy(&error.body);
                assert!(body.contains("user_id property set to 'hello' but authenticated user was 'guest'"), "{body}");
                assert_eq!(client.closed().await.0, 1002);
            }
            assert_eq!(admin.ready(&queue).await, Some(0));
            admin.delete(&queue).await;
        }
    }
}

/// A user with the tag `impersonator` may set any name.
#[tokio::test]
async fn an_impersonator_may_set_any_user_id() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let user = unique("impersonator");
    rabbit.add_user(&user, "secret", "/", [".*"; 3]);
    rabbit.ctl(&["set_user_tags", &user, "impersonator"]);
    for dialect in DIALECTS {
        let topic = format!("/topic/{}", unique("user-id"));
        let mut client = dialect.login(&relay, &user, "secret").await;
        client.subscribe(&format!("id:0\ndestination:{topic}")).await;
        client.send(&format!("SEND\ndestination:{topic}\nuser-id:somebody\n\nhello")).await;
        assert_eq!(client.message("hello").await.header("user-id"), Some("somebody"));
        client.disconnect().await;
    }
    rabbit.ctl(&["delete_user", &user]);
}
