//! A pristine PostgreSQL of a living `pg-harness run` for each test.
//!
//! ```ignore
//! mod pg_harness;
//!
//! #[test]
//! fn one() {
//!     let db = pg_harness::lease(); // this test's own; given back when it is dropped
//!     let client = postgres::Client::connect(db.url(), postgres::NoTls);
//! }
//! ```
//!
//! Tests run at once, in threads of one process (`cargo test`) or in processes (`cargo nextest run`); each leases what it needs, and
//! waits where none is free. One file, the standard library only. Written by `pg-harness init rust`; it is yours: change what you like.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a test waits for a database while others have all of them; PGHARNESS_LEASE_WAIT says another number of seconds.
const WAIT: u64 = 300;
/// For any other answer: a reset may be a fresh clone on a busy machine.
const PATIENCE: u64 = 120;
const COMMAND: &str = "pg-harness run -n 4 -- cargo test";

/// What cannot be had, and why.
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "pg-harness: {}", self.0)
    }
}

/// As for people: a test that fails by `unwrap` shows this one.
impl fmt::Debug for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{self}")
    }
}

impl std::error::Error for Error {}

/// One database of the run, pristine when it is handed out, and given back on drop. A process that is killed gives it back by being gone.
#[derive(Debug)]
pub struct Lease {
    id: u32,
    variables: BTreeMap<String, String>,
}

/// A database for this test alone.
///
/// # Panics
/// Where none can be had: outside of a run, or after the wait, with the names of those who have them.
#[track_caller]
pub fn lease() -> Lease {
    match Lease::take() {
        Ok(lease) => lease,
        Err(error) => panic!("{error}"),
    }
}

impl Lease {
    /// As [`lease`], without a panic.
    pub fn take() -> Result<Lease, Error> {
        static TAKEN: AtomicU32 = AtomicU32::new(0);
        let run = Run::of_environment()?;
        if variable("PGHARNESS_COPIES").is_some() {
            return Err(Error(format!(
                "a copy of `pg-harness run --copies` has one database, and its tests would share it. Run `{COMMAND}` instead"
            )));
        }
        let wait = match variable("PGHARNESS_LEASE_WAIT") {
            None => WAIT,
            Some(text) => match text.parse() {
                Ok(seconds) if seconds <= 3600 => seconds,
                _ => {
                    return Err(Error(format!(
                        "PGHARNESS_LEASE_WAIT is a number of seconds up to 3600, not {text:?}"
                    )))
                }
            },
        };
        let (pid, number) = (
            std::process::id(),
            TAKEN.fetch_add(1, Ordering::Relaxed) + 1,
        );
        // Threads of tests are named as their tests. No other lease has this name: the same worker would be given the same database once more.
        let thread = std::thread::current();
        let name: String = thread
            .name()
            .unwrap_or("a test")
            .chars()
            .take(150)
            .map(plain)
            .collect();
        let body = format!(
            "{{\"worker\": \"{name} ({pid}.{number})\", \"pid\": {pid}, \"wait\": {wait}}}"
        );
        let answer = run.ask("POST", "/v1/lease", &body, wait + PATIENCE)?;
        let unclear = || Error("the control interface answered what is no lease".to_string());
        let id = match answer.member("id") {
            Some(Json::Number(id)) if *id >= 1.0 => *id as u32,
            _ => return Err(unclear()),
        };
        let mut lease = Lease {
            id,
            variables: BTreeMap::new(),
        };
        match answer.member("env") {
            Some(Json::Object(members)) => {
                for (name, value) in members {
                    if let Json::Text(text) = value {
                        lease.variables.insert(name.clone(), text.clone());
                    }
                }
            }
            _ => return Err(unclear()),
        }
        Ok(lease)
    }

    /// Its number, as in DATABASE_URL_1.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// postgresql://…
    pub fn url(&self) -> &str {
        self.variable("DATABASE_URL").unwrap_or_default()
    }

    /// PGHOST, PGDATABASE …, or one of `[tool.pg-harness.env]`. Those of the process are not set: all of its threads have the same.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// All of them, for a command that the test starts: `Command::new(…).envs(lease.variables())`.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Back to the last mark, else to what the migrations made. Open connections stay.
    pub fn reset(&self) -> Result<(), Error> {
        self.ask("POST", &format!("/v1/reset/{}", self.id))
            .map(drop)
    }

    /// The present state is what reset comes back to; marks stack. The answer is its name.
    pub fn mark(&self) -> Result<String, Error> {
        match self
            .ask("POST", &format!("/v1/mark/{}", self.id))?
            .member("mark")
        {
            Some(Json::Text(mark)) => Ok(mark.clone()),
            _ => Err(Error(
                "the control interface answered what is no mark".to_string(),
            )),
        }
    }

    /// Forget a mark, and those above it. The rows stay until the next reset.
    pub fn unmark(&self, mark: &str) -> Result<(), Error> {
        self.ask("DELETE", &format!("/v1/mark/{}/{}", self.id, mark))
            .map(drop)
    }

    fn ask(&self, method: &str, path: &str) -> Result<Json, Error> {
        Run::of_environment()?.ask(method, path, "", PATIENCE)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.ask("POST", &format!("/v1/release/{}", self.id)) {
            // A second panic while a test fails would end the whole process.
            eprintln!("{error}");
        }
    }
}

fn plain(sign: char) -> char {
    if (' '..='~').contains(&sign) && sign != '"' && sign != '\\' {
        sign
    } else {
        '?'
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where the control interface is.
struct Run {
    url: String,
    token: String,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Run {
    fn of_environment() -> Result<Run, Error> {
        match (variable("PGHARNESS_CONTROL_URL"), variable("PGHARNESS_CONTROL_TOKEN")) {
            (Some(url), Some(token)) if !token.contains(['\r', '\n']) => Ok(Run { url, token }),
            _ => Err(Error(format!("these tests have no database: they were started outside of pg-harness. Run `{COMMAND}`"))),
        }
    }

    /// One request on a connection of its own: leases live longer than any one would be worth keeping.
    fn ask(&self, method: &str, path: &str, body: &str, patience: u64) -> Result<Json, Error> {
        let raw = self.exchange(method, path, body, patience).map_err(|error| {
            let run = variable("PGHARNESS_RUN").unwrap_or_default();
            Error(format!(
                "nobody answers at {} (PGHARNESS_CONTROL_URL): {error}. The run {run} is over or was killed; its databases are gone, and no \
                 others are taken in their stead. Run `{COMMAND}`",
                self.url
            ))
        })?;
        let text = String::from_utf8_lossy(&raw);
        let (head, content) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status: u16 = head
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        let answer = Json::parse(content);
        if (200..300).contains(&status) {
            return Ok(answer.unwrap_or(Json::Null));
        }
        // It names who has the databases, where none is free.
        let detail = match answer.as_ref().and_then(|problem| problem.member("detail")) {
            Some(Json::Text(detail)) => detail.clone(),
            _ => text.chars().take(300).collect(),
        };
        Err(Error(format!("{detail} ({method} {path}: {status})")))
    }

    fn exchange(&self, method: &str, path: &str, body: &str, patience: u64) -> io::Result<Vec<u8>> {
        let mut stream = self.connect(Duration::from_secs(patience))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.token,
            body.len()
        )?;
        stream.flush()?;
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw)?;
        if raw.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection was closed without an answer",
            ));
        }
        Ok(raw)
    }

    fn connect(&self, patience: Duration) -> io::Result<Box<dyn Stream>> {
        #[cfg(unix)]
        if let Some(path) = self.url.strip_prefix("unix://") {
            let stream = std::os::unix::net::UnixStream::connect(decoded(path))?;
            stream.set_read_timeout(Some(patience))?;
            return Ok(Box::new(stream));
        }
        let address = self
            .url
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'));
        let address = address.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "this is no address such as http://127.0.0.1:41234",
            )
        })?;
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// A path of an address, where `%20` is a space.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &after[2..]).0,
            None => (bytes.push(first), rest = after).0,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// JSON, as much of it as the control interface answers with.
#[derive(Debug, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    fn parse(text: &str) -> Option<Json> {
        let mut reader = Reader { rest: text };
        let value = reader.value(0)?;
        reader.rest.trim_start().is_empty().then_some(value)
    }

    fn member(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value),
            _ => None,
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn found(&mut self, word: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(word) {
            Some(after) => {
                self.rest = after;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > 64 {
            return None;
        }
        if self.found("{") {
            let mut members = Vec::new();
            while !self.found("}") {
                if !members.is_empty() && !self.found(",") {
                    return None;
                }
                let name = self.found("\"").then(|| self.text())??;
                if !self.found(":") {
                    return None;
                }
                members.push((name, self.value(depth + 1)?));
            }
            return Some(Json::Object(members));
        }
        if self.found("[") {
            let mut items = Vec::new();
            while !self.found("]") {
                if !items.is_empty() && !self.found(",") {
                    return None;
                }
                items.push(self.value(depth + 1)?);
            }
            return Some(Json::Array(items));
        }
        if self.found("\"") {
            return self.text().map(Json::Text);
        }
        for (word, value) in [
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
            ("null", Json::Null),
        ] {
            if self.found(word) {
                return Some(value);
            }
        }
        let end = self
            .rest
            .find(|sign: char| !"+-.0123456789eE".contains(sign))
            .unwrap_or(self.rest.len());
        let (number, after) = self.rest.split_at(end);
        self.rest = after;
        number.parse().ok().map(Json::Number)
    }

    /// What is left of a string behind its first quotation mark.
    fn text(&mut self) -> Option<String> {
        let mut read = String::new();
        loop {
            let sign = self.next()?;
            match sign {
                '"' => return Some(read),
                '\\' => match self.next()? {
                    'b' => read.push('\u{8}'),
                    'f' => read.push('\u{c}'),
                    'n' => read.push('\n'),
                    'r' => read.push('\r'),
                    't' => read.push('\t'),
                    'u' => read.push(self.escaped()?),
                    other => read.push(other),
                },
                other => read.push(other),
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let sign = self.rest.chars().next()?;
        self.rest = &self.rest[sign.len_utf8()..];
        Some(sign)
    }

    fn escaped(&mut self) -> Option<char> {
        let first = self.unit()?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first);
        }
        // Signs beyond 16 bits are written as two halves.
        let second = self
            .rest
            .strip_prefix("\\u")
            .is_some()
            .then(|| self.rest = &self.rest[2..])
            .and_then(|()| self.unit())?;
        (0xdc00..0xe000)
            .contains(&second)
            .then(|| char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)))?
    }

    fn unit(&mut self) -> Option<u32> {
        let digits = self.rest.get(..4)?;
        self.rest = &self.rest[4..];
        u32::from_str_radix(digits, 16).ok()
    }
}
