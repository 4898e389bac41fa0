//! Renders docs/configuration.md from the declared keys, so that the page can't be wrong.

use std::fmt::Write;

use super::Config;
use super::reader::{Form, Reader, Section, Values};

const OPENING: &str = r#"# Configuration

<!-- Rendered from src/config/sections.rs; a test compares. To rewrite: BLESS=1 cargo test --test it config -->

A value comes from the command line, else from the environment, else from the file given with `--config`, else it is the
default. Without `--config` no file is read. `stomp-relay check --config FILE` reports all problems in one run and exits
with 78 if there are any.

The file is [TOML](https://toml.io):

```toml
listen = ["wss://0.0.0.0:443/ws"]

[tls]
cert_file = "/etc/stomp-relay/cert.pem"
key_file = "/etc/stomp-relay/key.pem"

[broker]
uris = ["amqp://mq1.example.com:5672", "amqp://mq2.example.com:5672"]
```

* **Environment:** `STOMP_RELAY_` and the key in capitals, `__` between section and key: `STOMP_RELAY_TLS__KEY_FILE`. Text
  stands without quotes. Lists are separated by commas or written as in TOML (`["a", "b"]`), tables are `a=b,c=d` or TOML
  (`{ a = "b" }`). An unknown variable is an error, except those that Kubernetes sets for a service of this name
  (`STOMP_RELAY_SERVICE_HOST`, `STOMP_RELAY_PORT_443_TCP` and their like). A section `[[in double brackets]]` stands in the
  file only, any number of times; the order counts.
* **Durations** need a unit, `ms`, `s`, `m` or `h`: `"25s"`. **Sizes** need one of `B`, `KiB`, `MiB`, `GiB`: `"4MiB"`.
* **Secrets** can stand in a file of their own: for a secret `x` there is `x_file`; give one of the two.
* **Paths** that are relative start in the working directory. An empty optional value counts as not set.
* An unknown key is an error.
"#;

/// All keys in the order of declaration.
pub(super) fn declared() -> Vec<Section> {
    let mut reader = Reader::new(Values::new(), Vec::new());
    Config::read(&mut reader);
    reader.sections
}

/// The text of docs/configuration.md.
pub fn render() -> String {
    let mut page = OPENING.to_owned();
    for section in declared() {
        let title = match (section.name, section.form) {
            ("", _) => "Above all sections".to_owned(),
            (name, Form::Single) => format!("[{name}]"),
            (name, Form::Repeated) => format!("[[{name}]]"),
        };
        // Writing to a String does not fail.
        let _ = write!(
            page,
            "\n## {title}\n\n{}\n\n| key | type | default | meaning |\n|---|---|---|---|\n",
            section.about
        );
        for key in &section.keys {
            let default = if key.default.is_empty() { "none".to_owned() } else { format!("`{}`", key.default) };
            let _ = writeln!(page, "| `{}` | {} | {default} | {} |", key.name, key.kind, key.about);
        }
    }
    page
}
