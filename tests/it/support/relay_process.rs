//! The built relay as a process of its own, for what only a process has: resident memory, descriptors, a log.
//! It ends when this is dropped, and also when the test process ends in any other way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::scratch::Scratch;

pub struct RelayProcess {
    pub admin: String,
    /// Of the authority that signed the certificate of `wss`.
    pub ca: PathBuf,
    pub ws: String,
    /// Empty without TLS.
    pub wss: String,
    pub pid: u32,
    log: PathBuf,
    /// A shell that ends the relay when its standard input ends.
    shell: Child,
    _folder: Scratch,
}

/// Starts the relay with the arguments, says its process id, and outlives neither it nor standard input.
const KEEP: &str = "ulimit -n $0; exec 3<&0; \"$@\" <&- & pid=$!; echo \"pid $pid\"; \
                    { cat <&3 >/dev/null; kill -KILL $pid; } & wait $pid; kill $!";

impl RelayProcess {
    /// `settings` is TOML that goes over the defaults; `descriptors_max` is the limit of open files.
    pub fn start(program: &str, brokers: &[String], settings: &str, descriptors_max: u32) -> RelayProcess {
        RelayProcess::start_in(Scratch::new(), program, brokers, settings, descriptors_max, &[])
    }

    /// The same with a second listener, for `wss`.
    pub fn start_with_tls(program: &str, brokers: &[String], settings: &str, descriptors_max: u32) -> RelayProcess {
        let folder = Scratch::new();
        let certificate = stomp_relay::dev_cert::write(folder.folder(), stomp_relay::dev_cert::Existing::Keep)
            .expect("a certificate can be made");
        let path = |path: &PathBuf| path.to_str().expect("a scratch folder's name is text").to_owned();
        let (cert, key) = (path(&certificate.cert), path(&certificate.key));
        let more = ["--listen", "wss://127.0.0.1:0/ws", "--tls-cert", &cert, "--tls-key", &key];
        RelayProcess::start_in(folder, program, brokers, settings, descriptors_max, &more)
    }

    fn start_in(
        folder: Scratch,
        program: &str,
        brokers: &[String],
        settings: &str,
        descriptors_max: u32,
        more: &[&str],
    ) -> RelayProcess {
        let file = folder.write("stomp-relay.toml", settings);
        let log = folder.path("relay.log");
        let mut command = Command::new("sh");
        command.args(["-c", KEEP]).arg(descriptors_max.to_string()).arg(program);
        command.args(["serve", "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0", "--config"]).arg(file);
        command.args(more).args(brokers.iter().flat_map(|broker| ["--broker", broker]));
        command.env("STOMP_RELAY_DRAIN__DELAY", "0s").env("STOMP_RELAY_DRAIN__SPREAD", "0s");
        let stderr = std::fs::File::create(&log).expect("the scratch folder can be written");
        let mut shell =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn().expect("sh can be run");
        let mut lines = BufReader::new(shell.stdout.take().expect("piped")).lines();
        let mut next = |prefix: &str| loop {
            let line = lines.next().unwrap_or_else(|| panic!("no line '{prefix}'")).expect("text");
            if let Some(rest) = line.strip_prefix(prefix) {
                break rest.to_owned();
            }
        };
        let pid = next("pid ").parse().expect("a process id");
        let ws = next("listening on ");
        let wss = if more.is_empty() { String::new() } else { next("listening on ") };
        let admin = next("broker ").rsplit(' ').next().expect("the admin address is last").to_owned();
        next("ready");
        let ca = folder.folder().join("ca.pem");
        RelayProcess { admin, ca, ws, wss, log, pid, shell, _folder: folder }
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the relay runs");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("the relay runs").count()
    }

    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the relay runs").count()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log can be read")
    }

    pub fn metric(&self, name: &str) -> f64 {
        metric(&self.admin, name)
    }
}

/// The sum of a metric over all labels; 0 if there is none yet. `admin` is the address of a relay's admin listener.
pub fn metric(admin: &str, name: &str) -> f64 {
    let text = page(admin, "/metrics");
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        (rest.starts_with(' ') || rest.starts_with('{')).then(|| rest.rsplit(' ').next())?
    });
    values.map(|value| value.parse::<f64>().expect("a number")).sum()
}

/// What the admin listener answers, head and body.
pub fn page(admin: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(admin).expect("the admin listener is there");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
    write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("written");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("an answer");
    text
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
