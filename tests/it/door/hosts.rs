//! By which names the relay may be called: a page whose own name was made to point here is not let in, on no listener.

use tokio::net::TcpStream;

use super::{has_metric, relay};
use crate::support::process::{Process, get};
use crate::support::raw_http::{Answer, RawClient, upgrade};
use crate::support::relay::Relay;
use crate::support::stomp::address;

async fn ask(place: &str, request: &str) -> Answer {
    let mut client = RawClient::new(TcpStream::connect(place).await.unwrap());
    client.send(request).await;
    client.answer("GET").await
}

/// An upgrade that names this host, with these further lines.
async fn knock(relay: &Relay, host: &str, lines: &str) -> Answer {
    let request = upgrade("/ws", lines).replace("Host: example.com", &format!("Host: {host}"));
    ask(&address(&relay.ws), &request).await
}

async fn page(relay: &Relay, host: &str) -> u16 {
    knock(relay, host, &format!("Origin: http://{host}\r\n")).await.status
}

#[tokio::test]
async fn a_page_whose_name_was_made_to_point_here_is_not_let_in() {
    let relay = relay("");
    for (host, status) in [
        ("localhost:8080", 101),
        ("app.localhost", 101),
        ("127.0.0.1:8080", 101),
        ("[::1]", 101),
        // Of the development certificate.
        ("localhost", 101),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("203.0.113.1", 421),
    ] {
        assert_eq!(page(&relay, host).await, status, "{host}");
    }
    let told = knock(&relay, "evil.example", "Origin: http://evil.example\r\n").await;
    assert!(told.body.contains("evil.example") && told.body.contains("http.hosts"), "{}", told.body);
    assert_eq!(told.one("access-control-allow-origin"), "*", "the page may read why");
    // A program is nobody's page.
    assert_eq!(knock(&relay, "relay.example.com:8080", "").await.status, 101);
    assert!(has_metric(&relay, "ws_upgrades_total{result=\"host\"} 4").await);
}

#[tokio::test]
async fn files_and_other_paths_are_not_for_pages_of_other_names() {
    let folder = crate::support::scratch::Scratch::new();
    folder.write("index.html", "secret");
    let relay = relay(&format!("[http]\nroot = \"{}\"\n", folder.folder().display()));
    for (host, target, status) in [
        ("localhost", "/", 200),
        ("evil.example", "/", 421),
        ("evil.example", "/none", 421),
        ("localhost", "http://evil.example/", 400),
        ("localhost", "http://localhost/", 200),
    ] {
        let answer = ask(&address(&relay.ws), &format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{host} {target}");
        assert_eq!(answer.body.contains("secret"), status == 200);
    }
}

#[tokio::test]
async fn a_list_and_the_origins_name_hosts() {
    let listed = relay("[http]\nhosts = [\"chat.example.com\", \"*.example.org\"]\n");
    for (host, status) in
        [("chat.example.com", 101), ("a.example.org:81", 101), ("example.org", 421), ("localhost", 421)]
    {
        assert_eq!(page(&listed, host).await, status, "{host}");
        assert_eq!(knock(&listed, host, "").await.status, status, "a program at {host}");
    }
    let origins = relay("[http]\norigins = [\"http://chat.example.com\"]\n");
    assert_eq!(page(&origins, "chat.example.com").await, 101);
    // The page is of the list, wherever it believes to connect.
    assert_eq!(knock(&origins, "other.example", "Origin: http://chat.example.com\r\n").await.status, 101);
    assert_eq!(page(&origins, "evil.example").await, 403);
    let any = relay("[http]\nhosts = [\"*\"]\n");
    assert_eq!(page(&any, "evil.example").await, 101);
}

#[tokio::test]
async fn exactly_one_host_is_named() {
    let relay = relay("[http]\nhosts = [\"*\"]\n");
    let request = upgrade("/ws", "");
    for wrong in [
        request.replace("Host: example.com\r\n", ""),
        request.replace("Host: example.com", "Host: example.com\r\nHost: example.com"),
        request.replace("Host: example.com", "Host: example.com\r\nHost: evil.example"),
        request.replace("Host: example.com", "Host: "),
        request.replace("Host: example.com", "Host: a b"),
        request.replace("Host: example.com", "Host: a, b"),
        request.replace("GET /ws", "GET http://evil.example/ws"),
    ] {
        for place in [address(&relay.ws), relay.admin.to_string()] {
            let wrong = if place == relay.admin.to_string() { wrong.replace("/ws", "/livez") } else { wrong.clone() };
            let answer = ask(&place, &wrong).await;
            assert_eq!(answer.status, 400, "{wrong}");
            assert!(answer.body.starts_with("Bad request: "), "{}", answer.body);
        }
    }
}

#[tokio::test]
async fn the_admin_listener_is_read_by_nobody_elses_page() {
    let relay = relay("[admin]\nhosts = [\"relay.prod.example.com\"]\n");
    for (host, status) in [
        ("localhost:15680", 200),
        ("10.1.2.3:15680", 200),
        ("[fd00::1]:15680", 200),
        ("relay:15680", 200),
        ("relay-0.relay.default.svc.cluster.local:15680", 200),
        ("relay.prod.example.com", 200),
        ("evil.example", 421),
        ("evil.example:15680", 421),
    ] {
        for path in ["/livez", "/metrics"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(ask(&relay.admin.to_string(), &request).await.status, status, "{host} {path}");
        }
    }
    // As HAProxy probes.
    assert_eq!(ask(&relay.admin.to_string(), "GET /livez HTTP/1.0\r\n\r\n").await.status, 200);
    assert_eq!(get(relay.admin, "/livez").await.status, 200);
}

#[tokio::test]
async fn the_log_names_the_host_and_the_line_that_would_allow_it() {
    let arguments = ["serve", "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
    let mut process = Process::start(&arguments, &[("STOMP_RELAY_LOG__FORMAT", "json")]);
    let url = process.ready().urls.remove(0);
    let request = upgrade("/ws", "Origin: http://chat.example.com:8080\r\n");
    let request = request.replace("Host: example.com", "Host: chat.example.com:8080");
    assert_eq!(ask(&address(&url), &request).await.status, 421);
    let line = process.log.until("not known by this name");
    assert!(line.contains("\"WARN\"") && line.contains("\"host\":\"chat.example.com:8080\""), "{line}");
    assert!(line.contains(r#""allow":"[http] hosts = [\"chat.example.com\"]""#), "{line}");
}
