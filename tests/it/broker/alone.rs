//! What looks at the whole process, and so has one of its own: threads, memory.

use super::*;

/// Runs a test in a process of its own.
fn run(test: &str) {
    let this = std::env::current_exe().expect("known");
    let run =
        std::process::Command::new(this).args(["--exact", test, "--ignored", "--nocapture"]).output().expect("runs");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&run.stderr));
}

/// Runs alone in a process of its own, because it counts threads.
#[test]
fn a_silent_peer_costs_nothing_but_time() {
    run("broker::alone::silent_peer_alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by a_silent_peer_costs_nothing_but_time"]
async fn silent_peer_alone() {
    let lapin_threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("lapin")).count()
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("known").port();
    // Accepts, reads what comes and answers nothing, or the beginning of something.
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            std::thread::spawn(move || {
                let mut stream = stream.expect("accepted");
                if number % 2 == 1 {
                    let _ = std::io::Write::write_all(&mut stream, &[1, 0, 0, 0, 0, 1]);
                }
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    let limit = Duration::from_millis(400);
    let config = BrokerConfig { connect_timeout: limit, login_wait: Duration::ZERO, ..config(&[port]) };
    let broker = Broker::new(config).expect("the configuration is fine");
    for _ in 0..4 {
        let start = Instant::now();
        assert!(matches!(login_error(&broker, "/", guest()).await, LoginFailure::Unavailable { .. }));
        assert!(start.elapsed() < limit * 4, "{:?}", start.elapsed());
    }
    let start = Instant::now();
    assert!(broker.probe().await.is_err());
    assert!(start.elapsed() < limit * 4);
    eventually("lapin's threads are gone", || async { lapin_threads() == 0 }).await;
}

/// Runs alone in a process of its own, because it looks at memory.
#[test]
fn confirms_leave_nothing_behind() {
    run("broker::alone::confirms_alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by confirms_leave_nothing_behind"]
async fn confirms_alone() {
    const PUBLISHES: u64 = 20_000;
    /// A confirm that lapin collects has 800 bytes.
    const GROWTH_MAX: u64 = PUBLISHES * 800 / 2;
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it is there");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
    };
    let broker = broker();
    let mut channel = lease(&broker).await;
    let mut token = 0;
    let mut round = async |publishes: u64| {
        for _ in 0..publishes / 100 {
            (0..100).for_each(|n| channel.execute(BrokerCommand::Publish(publish(token + n, "", "nowhere"))));
            for _ in 0..100 {
                assert_eq!(next(&mut channel).await, BrokerEvent::Confirmed { token: PublishToken(token) });
                token += 1;
            }
        }
    };
    round(2_000).await;
    let before = resident();
    round(PUBLISHES).await;
    let growth = resident().saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{growth} bytes more after {PUBLISHES} confirms");
    close(channel).await;

    // The measure would show it: lapin alone, its confirms dropped.
    let admin = Rabbit::shared().admin().await;
    admin.channel.confirm_select(Default::default()).await.expect("confirm mode");
    let before = resident();
    for _ in 0..PUBLISHES {
        admin.send("nowhere", b"body").await;
    }
    let growth = resident().saturating_sub(before);
    assert!(growth > GROWTH_MAX, "only {growth} bytes more: lapin collects dropped confirms no longer");
}
