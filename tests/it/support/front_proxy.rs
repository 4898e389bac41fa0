//! nginx and HAProxy in front of a relay, started privately with the files of examples/proxies.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use super::process::Process;
use super::scratch::Scratch;
use super::stomp::DEADLINE;

pub struct FrontProxy {
    pub address: SocketAddr,
    _folder: Scratch,
    _process: Process,
}

impl FrontProxy {
    /// nginx with a file for its `http` block.
    pub fn nginx(file: &str, replacements: &[(&str, &str)]) -> FrontProxy {
        FrontProxy::start(file, replacements, "listen 443", |folder, snippet| {
            // Where Debian's nginx would need root: its own folders.
            let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("{kind}_temp_path {};\n", folder.path(kind).display()));
            let text = format!("events {{}}\nhttp {{\naccess_log off;\n{}{snippet}\n}}\n", temporary.concat());
            nginx_command(folder, &text)
        })
    }

    /// nginx with a file for its `stream` block.
    pub fn nginx_stream(file: &str, replacements: &[(&str, &str)]) -> FrontProxy {
        FrontProxy::start(file, replacements, "listen 443", |folder, snippet| {
            let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
            let text = format!("load_module {module};\nevents {{}}\nstream {{\n{snippet}\n}}\n");
            nginx_command(folder, &text)
        })
    }

    pub fn haproxy(file: &str, replacements: &[(&str, &str)]) -> FrontProxy {
        FrontProxy::start(file, replacements, "bind :443", |folder, snippet| {
            let file = folder.write("haproxy.cfg", snippet);
            ["/usr/sbin/haproxy", "-db", "-q", "-f", &file.display().to_string()].map(str::to_owned).to_vec()
        })
    }

    /// The file with its addresses replaced by those of the test: each must be there.
    fn start(
        file: &str,
        replacements: &[(&str, &str)],
        listen: &str,
        command: impl Fn(&Scratch, &str) -> Vec<String>,
    ) -> FrontProxy {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/proxies").join(file);
        let mut text = std::fs::read_to_string(path).expect("the example is there");
        let address = free_address();
        let listening = listen.replace(":443", "443").replace("443", &address.to_string());
        for (from, to) in [(listen, listening.as_str())].iter().chain(replacements) {
            assert!(text.contains(from), "{file} has no {from:?}");
            text = text.replace(from, to);
        }
        let folder = Scratch::new();
        let command = command(&folder, &text);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut process = Process::start_by(&command, &[]);
        let end = Instant::now() + DEADLINE;
        while TcpStream::connect(address).is_err() {
            let log = process.log.all();
            assert!(Instant::now() < end, "{file} does not listen; installed? scripts/packages says how: {log:#?}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        FrontProxy { address, _folder: folder, _process: process }
    }
}

/// One process in the foreground.
fn nginx_command(folder: &Scratch, text: &str) -> Vec<String> {
    let head = format!("daemon off;\nmaster_process off;\nerror_log stderr;\npid {};\n", folder.path("pid").display());
    let file = folder.write("nginx.conf", &format!("{head}{text}"));
    let prefix = folder.folder().display().to_string();
    ["/usr/sbin/nginx", "-e", "stderr", "-p", &prefix, "-c", &file.display().to_string()].map(str::to_owned).to_vec()
}

/// Of a port that was free just now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port")
}
