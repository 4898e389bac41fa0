//! The `user-id` of a message: RabbitMQ vouches for it, so a client can set its own only.

use crate::support::dialect::{DIALECTS, RABBITMQ};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::Client;

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

/// One line of the log for a login that is refused, with user, address and reason; none of the AMQP library's.
#[tokio::test]
async fn a_refused_login_is_one_line_of_the_log() {
    let rabbit = Rabbit::shared();
    let program = env!("CARGO_BIN_EXE_stomp-relay");
    let relay = RelayProcess::start(program, &[rabbit.uri()], "[log]\nformat = \"json\"\n", 1024);
    let mut client = Client::open(&relay.ws).await;
    client.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:wrong\n\n").await;
    client.error("Bad CONNECT").await;
    client.closed().await;
    let mut client = Client::open(&relay.ws).await;
    client.send("CONNECT\naccept-version:1.2\nhost:nowhere\nlogin:guest\npasscode:guest\n\n").await;
    client.error("Bad CONNECT").await;
    client.closed().await;
    let log = relay.log();
    let refused: Vec<&str> = log.lines().filter(|line| line.contains("\"login refused\"")).collect();
    assert_eq!(refused.len(), 2, "{log}");
    for (line, reason) in
        refused.iter().zip(["does not accept the user or its password", "NOT_ALLOWED - vhost nowhere"])
    {
        for part in ["\"user\":\"guest\"", "\"client\":\"127.0.0.1", reason] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("\"ERROR\"") || line.contains("lapin")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}
