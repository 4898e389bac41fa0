//! What RabbitMQ says of the queues of a virtual host, asked of each queue's own process: so it is true at this moment, which
//! neither statistics nor a passive declaration are. `rabbitmqctl` would take a second for each question.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use super::rabbit::Rabbit;
use super::stomp::DEADLINE;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    pub consumers: usize,
    pub name: String,
    pub ready: usize,
    pub unacknowledged: usize,
}

/// A connection to a process within the node, which ends with it.
pub struct QueueStates(BufStream<TcpStream>);

impl QueueStates {
    pub async fn open(rabbit: &'static Rabbit, vhost: &str) -> QueueStates {
        let answer = format!(
            "fun() -> [[N, $ , integer_to_list(R), $ , integer_to_list(U), $ , integer_to_list(C), $\\t] || \
             [{{name, {{resource, _, queue, N}}}}, {{messages_ready, R}}, {{messages_unacknowledged, U}}, {{consumers, C}}] \
             <- rabbit_amqqueue:info_all(<<\"{vhost}\">>, [name, messages_ready, messages_unacknowledged, consumers]), \
             is_integer(R), is_integer(U), is_integer(C)] end"
        );
        // A queue that ends while it is asked may answer with a failure: then all are asked again.
        let serve = format!(
            "Asker = self(), Ask = {answer}, Answer = fun Retry() -> try Ask() catch _:_ -> timer:sleep(1), Retry() end end, \
             spawn(fun() -> \
             {{ok, L}} = gen_tcp:listen(0, [{{ip, {{127,0,0,1}}}}, binary, {{packet, line}}, {{active, false}}]), \
             {{ok, P}} = inet:port(L), Asker ! {{port, P}}, {{ok, S}} = gen_tcp:accept(L), \
             Serve = fun Again() -> case gen_tcp:recv(S, 0) of {{ok, _}} -> \
             ok = gen_tcp:send(S, [Answer(), $\\n]), Again(); _ -> ok end end, Serve() end), \
             receive {{port, P}} -> P end."
        );
        let port = tokio::task::spawn_blocking(move || rabbit.ctl(&["eval", &serve])).await.expect("ran");
        let port: u16 = port.trim().parse().expect("a port");
        QueueStates(BufStream::new(TcpStream::connect(("127.0.0.1", port)).await.expect("it listens")))
    }

    /// All queues as they are now.
    pub async fn ask(&mut self) -> Vec<QueueState> {
        let mut line = String::new();
        let answer = async {
            self.0.write_all(b"?\n").await?;
            self.0.flush().await?;
            self.0.read_line(&mut line).await
        };
        tokio::time::timeout(DEADLINE, answer).await.expect("an answer in time").expect("an answer");
        line.trim_end_matches('\n').split_terminator('\t').map(QueueState::parse).collect()
    }
}

impl QueueState {
    fn parse(text: &str) -> QueueState {
        let mut words = text.rsplitn(4, ' ');
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        let (consumers, unacknowledged, ready) = (number(), number(), number());
        QueueState { consumers, name: words.next().expect("a name").to_owned(), ready, unacknowledged }
    }
}
