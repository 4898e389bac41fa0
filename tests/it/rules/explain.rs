//! `stomp-relay explain`, and the page on rules, whose examples are run here.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::config::load;
use crate::support::scratch::Scratch;

fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rules.md")).expect("the page is there")
}

/// The blocks of the page that are opened with ``` and this word.
fn blocks(page: &str, kind: &str) -> Vec<String> {
    let opened = page.split("\n```").skip(1).step_by(2);
    opened.filter_map(|block| block.strip_prefix(kind)?.strip_prefix('\n').map(|text| format!("{text}\n"))).collect()
}

/// Exit code and standard output of the program, run in the folder.
fn run(folder: &Scratch, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_stomp-relay"))
        .args(arguments)
        .env_clear()
        .current_dir(folder.folder())
        .output()
        .expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code().unwrap_or(-1), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn the_examples_of_the_page_are_true() {
    let page = page();
    let examples = blocks(&page, "toml");
    assert!(!examples.is_empty());
    for example in &examples {
        let config = load(example).unwrap_or_else(|report| panic!("{example}: {report}"));
        assert!(!config.rules.is_empty(), "{example}");
    }
    let folder = Scratch::new();
    folder.write("relay.toml", &examples[0]);
    let shown = blocks(&page, "");
    assert!(!shown.is_empty(), "no session with explain in the page");
    for session in shown {
        let (command, expected) = session.split_once("\n").expect("a command and what it prints");
        let (command, expected) = match command.strip_suffix('\\') {
            Some(first) => {
                let (second, expected) = expected.split_once('\n').expect("a second line");
                (format!("{first} {second}"), expected)
            }
            None => (command.to_owned(), expected),
        };
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words[..2], ["$", "stomp-relay"], "{command}");
        assert_eq!(run(&folder, &words[2..]), (0, expected.to_owned()), "{command}");
    }
}

#[test]
fn explain_shows_rule_and_operations() {
    let folder = Scratch::new();
    folder.write(
        "relay.toml",
        "[[rules]]\nname = \"all but secrets\"\neffect = \"deny\"\nsend = [\"/queue/secret\"]\nsubscribe = [\"/topic/secret.**\"]\n\
         [[rules]]\nusers = [\"a*\"]\nclaims = { role = \"trader\" }\nsend = [\"/queue/{claim.org}\"]\nsubscribe = [\"/topic/**\"]\n\
         [[rules]]\nsend = [\"/queue/**\"]\ndeclare = false\n",
    );
    let explain = |arguments: &[&str]| run(&folder, &[&["explain", "--config", "relay.toml"], arguments].concat());
    let first = "rule 1 \"all but secrets\" (line 1)";
    let cases: [(&[&str], i32, String); 9] = [
        (
            &["--user", "alice", "--claim", "role=trader", "--claim", "org=x", "--claim", "org=y", "SEND", "/queue/y"],
            0,
            format!(
                "{first}: does not reach it\nrule 2 (line 6): allows\nAMQP:\n  queue.declare queue='y' durable\n  \
                 basic.publish exchange='' routing-key='y' message-id='explained-0'\n"
            ),
        ),
        (
            &[
                "--user",
                "alice",
                "--claim",
                "role=trader",
                "--claim",
                "org=*",
                "SEND",
                "/queue/z",
                "--header",
                "receipt:r",
            ],
            0,
            format!(
                "{first}: does not reach it\nrule 2 (line 6): does not reach it; {{claim.org}} has no value here that may stand in a pattern\n\
                 rule 3 (line 11): allows\nAMQP:\n  \
                 basic.publish exchange='' routing-key='z' mandatory message-id='explained-0'\n"
            ),
        ),
        (
            &["--user", "alice", "--claim", "role=trader", "SUBSCRIBE", "/topic/news.#"],
            0,
            format!(
                "{first}: does not reach it\nrule 2 (line 6): allows\nAMQP:\n  \
                 queue.declare queue='stomp-subscription-(random)' auto-delete exclusive\n  \
                 queue.bind queue='stomp-subscription-(random)' exchange='amq.topic' routing-key='news.#'\n  \
                 basic.qos prefetch-count=100\n  basic.consume queue='stomp-subscription-(random)'\n  \
                 (one such queue serves all subscribers of this key at this relay)\n"
            ),
        ),
        (
            &["--user", "alice", "--claim", "role=trader", "SUBSCRIBE", "/topic/#"],
            1,
            format!(
                "{first}: denies\nERROR auth.denied: SUBSCRIBE '/topic/#': user 'alice' may not subscribe to all that it matches\n"
            ),
        ),
        (
            &["--user", "bob", "SUBSCRIBE", "/topic/a"],
            1,
            format!(
                "{first}: does not reach it\nrule 2 (line 6): not for this user\nrule 3 (line 11): does not reach it\n\
                 no rule decides: denied\nERROR auth.denied: SUBSCRIBE '/topic/a': user 'bob' may not subscribe to all that it matches\n"
            ),
        ),
        (
            &["--user", "bob", "SEND", "/queue/a", "--header", "CC:secret"],
            1,
            format!(
                "{first}: does not reach it\nrule 2 (line 6): not for this user\nrule 3 (line 11): allows\n\
                 SEND with the routing key 'secret' too:\n  {first}: denies\n\
                 ERROR auth.denied: SEND '/queue/a': user 'bob' may not send there with the routing key 'secret'\n"
            ),
        ),
        (
            &["--user", "bob", "SEND", "nonsense/a"],
            1,
            "ERROR destination.unknown: 'nonsense/a' is not a valid destination.\n".to_owned(),
        ),
        (
            &["--user", "bob", "SEND", "/auth/tokens"],
            0,
            "/auth/tokens renews the client's token; no rule has a say, and nothing goes to RabbitMQ\n".to_owned(),
        ),
        (
            &["--user", "bob", "SEND", "/queue/a", "--header", "receipt"],
            2,
            "error: --header \"receipt\" is no header; write NAME:VALUE\n".to_owned(),
        ),
    ];
    for (arguments, code, expected) in cases {
        assert_eq!(explain(arguments), (code, expected), "{arguments:?}");
    }
}

#[test]
fn explain_reads_a_token_without_believing_it() {
    let folder = Scratch::new();
    folder.write(
        "relay.toml",
        "[[rules]]\nclaims = { \"realm.roles\" = \"trader\" }\nsend = [\"/exchange/orders/{username}\"]\n",
    );
    let payload =
        r#"{"sub":"1","preferred_username":"alice","realm":{"roles":["clerk","trader"]},"exp":1,"n":[1,"a"]}"#;
    folder.write("token", &format!("e30.{}.x\n", URL_SAFE_NO_PAD.encode(payload)));
    let explain = |token: &str| {
        run(&folder, &["explain", "--config", "relay.toml", "--token", token, "SEND", "/exchange/orders/alice"])
    };
    let expected = "the token's signature and times are not checked here\nrule 1 (line 1): allows\nAMQP:\n  \
                    basic.publish exchange='orders' routing-key='alice' message-id='explained-0'\n";
    assert_eq!(explain("token"), (0, expected.to_owned()));
    folder.write("bad", "e30.x");
    let form = "error: bad is no JWT: three parts of base64url with dots between are expected\n";
    assert_eq!(explain("bad"), (2, form.to_owned()));
    folder.write("bad", &format!("e30.{}.x", URL_SAFE_NO_PAD.encode("[1]")));
    assert_eq!(explain("bad"), (2, "error: bad is no JWT: its second part is no JSON object\n".to_owned()));
}
