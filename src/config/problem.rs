//! What is wrong with a configuration and where: one line per problem, all of them in one run.
//!
//! Owns the error text's frame (`FILE:LINE:COLUMN: error: …`). The sentences come from whoever found the problem; they
//! never hold a secret's value.

use std::fmt;

/// Where a value was set. The order is the order of the report.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nowhere: it is the default.
    Default,
    /// The file as a whole.
    WholeFile,
    /// Both count from 1; the column counts characters.
    File { line: usize, column: usize },
    /// The environment variable of this name.
    Environment(String),
    /// The command line flag of this name.
    Flag(&'static str),
}

impl Place {
    /// The line in the file.
    pub(super) fn line(&self) -> Option<usize> {
        match self {
            Place::File { line, .. } => Some(*line),
            _ => None,
        }
    }
}

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub place: Place,
    pub text: String,
}

/// All problems of one configuration; never empty when returned as an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    file: Option<String>,
    list: Vec<Problem>,
}

impl Problems {
    pub(super) fn new(file: Option<String>, mut list: Vec<Problem>) -> Self {
        list.sort();
        Self { file, list }
    }

    /// The problems in the order of the report: file from top to bottom, environment, flags.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    fn file(&self) -> &str {
        self.file.as_deref().unwrap_or("configuration")
    }

    /// Names the sources that hold problems, such as "stomp-relay.toml and the environment".
    fn sources(&self) -> String {
        let mut sources: Vec<&str> = Vec::new();
        for problem in &self.list {
            let source = match problem.place {
                Place::Default | Place::WholeFile | Place::File { .. } => self.file(),
                Place::Environment(_) => "the environment",
                Place::Flag(_) => "the command line",
            };
            if sources.last() != Some(&source) {
                sources.push(source);
            }
        }
        sources.join(" and ")
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.list {
            match &problem.place {
                Place::Default | Place::WholeFile => write!(f, "{}", self.file())?,
                Place::File { line, column } => write!(f, "{}:{line}:{column}", self.file())?,
                Place::Environment(name) => write!(f, "env {name}")?,
                Place::Flag(name) => write!(f, "flag {name}")?,
            }
            writeln!(f, ": error: {}", problem.text)?;
        }
        let plural = if self.list.len() == 1 { "" } else { "s" };
        write!(f, "{} problem{plural} in {}", self.list.len(), self.sources())
    }
}
