//! The process: command line, configuration, log, runtime, exit code. Everything else is in the library.

mod allocator;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use stomp_relay::budget::machine;
use stomp_relay::cli::{self, Check, Cli, DevCertArgs, Explain, Serve, Verb};
use stomp_relay::config::{Config, Overrides, Problems};
use stomp_relay::dev_cert::{self, Existing};
use stomp_relay::explain::{self, Question};
use stomp_relay::server::{self, AtStart, Reload};
use stomp_relay::session::identity::Identity;
use stomp_relay::session::proof::ProofKind;
use stomp_relay::session::rules::Operation;
use stomp_relay::telemetry::Telemetry;

fn main() -> ExitCode {
    ExitCode::from(match Cli::parse().verb {
        Verb::Serve(arguments) => serve(&arguments),
        Verb::Check(arguments) => check(&arguments),
        Verb::DevCert(arguments) => make_dev_cert(&arguments),
        Verb::Explain(arguments) => explain_frame(&arguments),
        Verb::Version(arguments) => {
            say(&arguments.line());
            cli::EXIT_OK
        }
    })
}

fn serve(arguments: &Serve) -> u8 {
    // Before there are threads: each would have memory of its own by the settings of its first allocation.
    let allocator = allocator::give_back();
    let config = match load(arguments.config.as_deref(), &arguments.overrides()) {
        Ok(config) => config,
        Err(problems) => return fail(cli::EXIT_BAD_CONFIGURATION, &problems.to_string()),
    };
    let telemetry = match Telemetry::init(&config.log) {
        Ok(telemetry) => telemetry,
        Err(reason) => return fail(cli::EXIT_FAILURE, &format!("error: cannot start the log: {reason}")),
    };
    if let Err(reason) = allocator {
        tracing::warn!(reason, "memory goes back to the system late after a burst: the allocator refused its settings");
    }
    let threads = config.runtime.threads(std::thread::available_parallelism().map_or(1, usize::from));
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(cli::EXIT_FAILURE, &format!("error: cannot start the runtime: {error}")),
    };
    let at_start = if arguments.require_broker { AtStart::RequireBroker } else { AtStart::Anyway };
    let (path, flags) = (arguments.config.clone(), arguments.overrides());
    let reload = Reload {
        load: Box::new(move || load(path.as_deref(), &flags)),
        applied: Box::new(move |config| telemetry.reload(&config.log)),
    };
    let end = runtime.block_on(server::serve(config, at_start, reload));
    // Threads that hang in a system call, such as a name look-up, must not hold the process up.
    runtime.shutdown_background();
    match &end {
        Ok(()) => cli::EXIT_OK,
        Err(error) => fail(cli::exit_code(&end), &format!("error: {error}")),
    }
}

fn check(arguments: &Check) -> u8 {
    match load(Some(&arguments.config), &Overrides::default()) {
        Ok(config) => {
            let warnings = config.warnings();
            for warning in &warnings {
                let _ = writeln!(std::io::stderr(), "{}: warning: {warning}", arguments.config.display());
            }
            if arguments.strict && !warnings.is_empty() {
                let plural = if warnings.len() == 1 { "" } else { "s" };
                let text = format!("{}: {} warning{plural}", arguments.config.display(), warnings.len());
                return fail(cli::EXIT_BAD_CONFIGURATION, &text);
            }
            say(&format!("{}: ok", arguments.config.display()));
            say(&config.budget_text(machine::memory()));
            cli::EXIT_OK
        }
        Err(problems) => fail(cli::EXIT_BAD_CONFIGURATION, &problems.to_string()),
    }
}

fn make_dev_cert(arguments: &DevCertArgs) -> u8 {
    let existing = if arguments.force { Existing::Replace } else { Existing::Keep };
    match dev_cert::write(&arguments.out, existing) {
        Ok(files) => {
            say(&format!("{}\n{}\n{}", files.ca.display(), files.cert.display(), files.key.display()));
            cli::EXIT_OK
        }
        Err(error) => fail(cli::EXIT_FAILURE, &format!("error: {error}")),
    }
}

fn explain_frame(arguments: &Explain) -> u8 {
    let config = match load(Some(&arguments.config), &Overrides::default()) {
        Ok(config) => config,
        Err(problems) => return fail(cli::EXIT_BAD_CONFIGURATION, &problems.to_string()),
    };
    let (identity, headers) = match asked(arguments) {
        Ok(asked) => asked,
        Err(text) => return fail(cli::EXIT_USAGE_OR_FORCED, &format!("error: {text}")),
    };
    if arguments.token.is_some() {
        say("the token's signature and times are not checked here");
    }
    let answer = explain::explain(
        &config,
        &Question {
            broker_version: arguments.broker_version.clone(),
            destination: arguments.destination.clone(),
            headers,
            identity,
            operation: if arguments.command == "SEND" { Operation::Send } else { Operation::Subscribe },
            virtual_host: arguments.vhost.clone(),
        },
    );
    say(&answer.to_string());
    if answer.accepted { cli::EXIT_OK } else { cli::EXIT_FAILURE }
}

type Headers = Vec<(String, String)>;

/// Who asks, and with which headers.
fn asked(arguments: &Explain) -> Result<(Identity, Headers), String> {
    let mut identity = match &arguments.token {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            explain::identity_of_token(&text).map_err(|error| format!("{} {error}", path.display()))?
        }
        None => Identity {
            claims: explain::claims(&arguments.claim)
                .map_err(|text| format!("--claim {text:?} is no pair; write NAME=VALUE"))?,
            ..Identity::default()
        },
    };
    if let Some(user) = &arguments.user {
        identity.user.clone_from(user);
    }
    identity.certificate_name.clone_from(&arguments.certificate);
    if !identity.claims.is_empty() || arguments.token.is_some() {
        identity.proof = ProofKind::Token;
    }
    if let Some(kind) = &arguments.proof {
        identity.proof =
            ProofKind::NAMES.iter().find(|(name, _)| name == kind).map_or(identity.proof, |(_, kind)| *kind);
    }
    let pair = |text: &String| match text.split_once(':') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(format!("--header {text:?} is no header; write NAME:VALUE")),
    };
    Ok((identity, arguments.header.iter().map(pair).collect::<Result<_, _>>()?))
}

/// A variable that is not UTF-8 is passed on with replacement marks, which the configuration refuses by name.
fn load(path: Option<&Path>, flags: &Overrides) -> Result<Config, Problems> {
    let variables = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    Config::load(path, variables, flags)
}

/// Writes to standard output; a reader that went away is no failure of ours.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn fail(code: u8, text: &str) -> u8 {
    let _ = writeln!(std::io::stderr(), "{text}");
    code
}
