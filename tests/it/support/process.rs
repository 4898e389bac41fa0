//! The built program as a child process. It ends with the value that stands for it, and with the test process, however that
//! ends.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::raw_http::{Answer, RawClient};
use super::stomp::DEADLINE;

/// Runs the program given as arguments, and kills it when standard input ends. Says its process id first.
const KEEPER: &str = r#"exec 3<&0
"$@" </dev/null 3<&- & child=$!
echo "pid $child"
(cat <&3 >/dev/null; kill -s KILL $child) 2>/dev/null & guard=$!
wait $child; code=$?
kill $guard 2>/dev/null
exit $code"#;

pub struct Process {
    keeper: Child,
    /// Standard error.
    pub log: Lines,
    pid: String,
    pub stdout: Lines,
}

/// What `serve` says when it is ready.
pub struct Ready {
    pub admin: SocketAddr,
    pub lines: Vec<String>,
    pub urls: Vec<String>,
}

/// The built program. Examples share this file and are not told where it is.
pub const RELAY: &str = match option_env!("CARGO_BIN_EXE_stomp-relay") {
    Some(path) => path,
    None => "stomp-relay",
};

impl Process {
    /// The built relay with these arguments and, besides them, no environment.
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Process {
        Process::start_by(&[&[RELAY], arguments].concat(), environment)
    }

    /// Another program, which must stay in the foreground and be or become one process.
    pub fn start_by(command: &[&str], environment: &[(&str, &str)]) -> Process {
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .args(command)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh can be run");
        let mut stdout = Lines::of(keeper.stdout.take().expect("piped"));
        let log = Lines::of(keeper.stderr.take().expect("piped"));
        let pid = stdout.until("pid ").split_off("pid ".len());
        Process { keeper, log, pid, stdout }
    }

    /// Waits for the start-up lines of `serve`.
    pub fn ready(&mut self) -> Ready {
        self.stdout.until("ready");
        let lines: Vec<String> = self.stdout.seen.drain(..).skip(1).collect();
        let urls = lines.iter().filter_map(|line| line.strip_prefix("listening on ")).map(str::to_owned).collect();
        let admin = lines.iter().find_map(|line| line.split_once("; admin ")).expect("the line of the broker").1;
        Ready { admin: admin.parse().expect("an address"), lines, urls }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid]).status().expect("kill can be run");
        assert!(status.success(), "the process {} has ended already", self.pid);
    }

    /// Waits for the end and returns the exit code.
    pub fn exit_code(&mut self) -> i32 {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.keeper.try_wait().expect("a child") {
                return status.code().expect("the keeper exits");
            }
            assert!(Instant::now() < end, "the process does not end; its log: {:#?}", self.log.all());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// The lines of a pipe, as they come.
pub struct Lines {
    receiver: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Lines {
        let (sender, receiver) = channel();
        // Reads on to the end, so that the program is never held up by a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Lines { receiver, seen: Vec::new() }
    }

    /// The next line that contains a text.
    pub fn until(&mut self, wanted: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.receiver.recv_timeout(left);
            let line = line.unwrap_or_else(|error| panic!("{error}: no {wanted:?} in {:#?}", self.seen));
            self.seen.push(line.clone());
            if line.contains(wanted) {
                return line;
            }
        }
    }

    /// All that has been written.
    pub fn all(&mut self) -> &[String] {
        self.seen.extend(self.receiver.try_iter());
        &self.seen
    }

    /// All that is written up to the end of the process.
    pub fn rest(&mut self) -> String {
        while let Ok(line) = self.receiver.recv_timeout(DEADLINE) {
            self.seen.push(line);
        }
        self.seen.join("\n")
    }
}

/// GET on a connection of its own.
pub async fn get(address: SocketAddr, target: &str) -> Answer {
    let stream = tokio::net::TcpStream::connect(address).await.expect("the relay listens");
    let mut client = RawClient::new(stream);
    client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    client.answer("GET").await
}
