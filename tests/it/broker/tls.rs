//! TLS towards RabbitMQ.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_a_plaintext_port_fails() {
    let mut config = config(&[Rabbit::shared().amqp_port()]);
    config.nodes[0].encryption = Encryption::Tls;
    config.nodes[0].host = "localhost".into();
    let authority = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let file = std::env::temp_dir().join(unique("ca"));
    std::fs::write(&file, authority.cert.pem()).expect("written");
    config.ca = Some(file.clone());
    let broker = Broker::new(config).expect("the configuration is fine");
    std::fs::remove_file(file).expect("removed");
    let failure = login_error(&broker, "/", guest()).await;
    assert!(matches!(failure, LoginFailure::Unavailable { .. }), "{failure:?}");
    assert!(broker.probe().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_encrypts_and_checks_the_certificate() {
    let folder = std::env::temp_dir().join(unique("certificates"));
    std::fs::create_dir(&folder).expect("created");
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let (cert, key) = (file("cert.pem", cert.pem()), file("key.pem", signing_key.serialize_pem()));
    let other = file("other.pem", other.cert.pem());
    // Free a moment ago: the node cannot be asked which one it took.
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("known").port();
    let _rabbit = Rabbit::start_with(&format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n",
        cert.display(),
        key.display()
    ));
    let broker = |host: &str, ca: &std::path::Path| {
        let nodes = vec![Node { host: host.into(), port, encryption: Encryption::Tls }];
        Broker::new(BrokerConfig {
            nodes,
            ca: Some(ca.to_owned()),
            login_wait: Duration::ZERO,
            ..BrokerConfig::default()
        })
        .expect("fine")
    };
    let right = broker("localhost", &cert);
    right.probe().await.expect("the node answers");
    let mut channel = lease(&right).await;
    channel.execute(BrokerCommand::Publish(publish_as(1, "", "nowhere", |message| {
        message.body = Bytes::from(vec![1; 500_000]);
        message.mandatory = true;
    })));
    assert!(matches!(next(&mut channel).await, BrokerEvent::Returned { reply_code: 312, .. }));
    close(channel).await;
    for wrong in [broker("localhost", &other), broker("127.0.0.1", &cert)] {
        let failure = login_error(&wrong, "/", guest()).await;
        assert!(
            matches!(&failure, LoginFailure::Unavailable { reason } if reason.contains("certificate")),
            "{failure:?}"
        );
    }
    std::fs::remove_dir_all(folder).expect("removed");
}
