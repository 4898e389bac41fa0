//! The texts that this listener answers to people and probes that came without a WebSocket.

/// How people are meant to read an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Html,
    Text,
}

/// Where the client believes to be: what an example should connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint<'a> {
    pub(super) scheme: &'static str,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
}

/// Longest host of an example; a longer one is replaced.
const HOST_MAX: usize = 255;

/// A host as it may be printed into a page, whatever the client sent: nothing that HTML or JavaScript would read.
pub(super) fn printable_host(host: &str) -> &str {
    if is_plain_host(host) { host } else { "HOST" }
}

/// Whether a host, with or without a port, has nothing in it that a page or a URL would read as something else.
pub(super) fn is_plain_host(host: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    !host.is_empty() && host.len() <= HOST_MAX && host.bytes().all(plain)
}

/// What the WebSocket path says to a request that does not ask for an upgrade.
pub(super) fn upgrade_required(endpoint: Endpoint<'_>, format: Format) -> String {
    let Endpoint { scheme, host, path } = endpoint;
    let url = format!("{scheme}://{host}{path}");
    let example = format!("new StompJs.Client({{ brokerURL: '{url}' }}).activate()");
    match format {
        Format::Text => format!(
            "This is a STOMP over WebSocket endpoint, not a web page.\n\
             Connect to {url} with a STOMP client, for example @stomp/stompjs:\n\n    {example}\n\n\
             The request had no \"Upgrade: websocket\" with \"Connection: Upgrade\". If a STOMP client sent it, a proxy \
             on the way has removed these headers.\n"
        ),
        Format::Html => {
            let (url, example) = (escape(&url), escape(&example));
            format!(
                "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>STOMP over WebSocket</title></head>\
                 <body>\n<h1>This is a STOMP over WebSocket endpoint</h1>\n\
                 <p>It is not a web page. Connect to <code>{url}</code> with a STOMP client, for example \
                 <a href=\"https://github.com/stomp-js/stompjs\">@stomp/stompjs</a>:</p>\n<pre>{example}</pre>\n\
                 <p>The request had no <code>Upgrade: websocket</code> with <code>Connection: Upgrade</code>. If a STOMP \
                 client sent it, a proxy on the way has removed these headers.</p>\n</body></html>\n"
            )
        }
    }
}

/// What an unknown path says.
pub(super) fn not_found(endpoint: Endpoint<'_>) -> String {
    let Endpoint { scheme, host, path } = endpoint;
    format!("Nothing here. The STOMP over WebSocket endpoint is {scheme}://{host}{path}\n")
}

/// What a page of another origin gets. A browser does not show it to a page that opens a WebSocket, but to one that fetches it.
/// Which origins may connect is not said.
pub(super) fn forbidden_origin(origin: &str) -> String {
    let origin =
        if origin.bytes().all(|byte| byte.is_ascii_graphic()) && origin.len() <= HOST_MAX { origin } else { "?" };
    format!(
        "Pages of the origin {origin} may not connect here: the operator of this server decides which may.\n\
         Ask the operator to add it to the setting http.origins; the server's log has the line to write.\n"
    )
}

/// What a request gets that calls the relay by another's name. Which names there are is not said.
pub(super) fn unknown_host(host: &str) -> String {
    let host = if is_plain_host(host) { host } else { "?" };
    format!(
        "This server is not known as {host}: the operator decides by which names it may be called.\n\
         Ask the operator to add it to the setting http.hosts; the server's log has the line to write.\n"
    )
}

/// At a limit, when not even a refusal within the WebSocket can be afforded.
pub(super) const UNAVAILABLE: &str = "Too many connections. Try again in a few seconds.\n";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_hosts_are_not_printed() {
        assert_eq!(printable_host("chat.example.com:8443"), "chat.example.com:8443");
        assert_eq!(printable_host("[::1]:8080"), "[::1]:8080");
        for hostile in ["", "<script>", "a'b", "a\"b", "a b", &"x".repeat(256)] {
            assert_eq!(printable_host(hostile), "HOST", "{hostile}");
        }
    }

    #[test]
    fn html_escapes_a_configured_path() {
        let endpoint = Endpoint { scheme: "wss", host: "h", path: "/a<b>'&" };
        let page = upgrade_required(endpoint, Format::Html);
        assert!(page.contains("wss://h/a&lt;b&gt;&#39;&amp;") && !page.contains("<b>"), "{page}");
    }
}
