//! The commands that must run inside the shell because they change it.

use super::exec::{Flow, Shell, note};
use crate::{find, process};
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet};
use nix::unistd::Pid;

impl Shell {
    pub(super) fn builtin(&mut self, fields: &[String]) -> u8 {
        let number = |at: usize, default: i64| {
            fields.get(at).map_or(Some(default), |text| text.parse::<i64>().ok()).unwrap_or(2)
        };
        match fields[0].as_str() {
            ":" => 0,
            "cd" => {
                let home = self.get("HOME").unwrap_or_else(|| "/".into());
                let folder = match fields.get(1).map(String::as_str) {
                    None => home,
                    Some("-") => self.get("OLDPWD").unwrap_or(home),
                    Some(folder) => folder.to_owned(),
                };
                let before = std::env::current_dir().unwrap_or_default();
                if let Err(error) = std::env::set_current_dir(&folder) {
                    eprintln!("cd: {folder}: {error}");
                    return 1;
                }
                self.set("OLDPWD", &before.to_string_lossy());
                let now = std::env::current_dir().unwrap_or_default();
                self.set("PWD", &now.to_string_lossy());
                0
            }
            "exit" => {
                self.leaving = true;
                number(1, self.status.into()) as u8
            }
            "return" => {
                self.flow = Flow::Return;
                number(1, self.status.into()) as u8
            }
            "break" => {
                self.flow = Flow::Break(number(1, 1).max(1) as usize);
                0
            }
            "continue" => {
                self.flow = Flow::Continue(number(1, 1).max(1) as usize);
                0
            }
            "export" | "local" | "readonly" => {
                for field in &fields[1..] {
                    let (name, value) = field
                        .split_once('=')
                        .map_or((field.as_str(), None), |(name, value)| (name, Some(value)));
                    if let Some(value) = value {
                        self.set(name, value);
                    }
                    if fields[0] == "export" {
                        self.exported.insert(name.to_owned(), ());
                    }
                }
                0
            }
            "unset" => {
                for name in &fields[1..] {
                    self.variables.remove(name);
                    self.functions.remove(name);
                }
                0
            }
            "set" => {
                let mut rest = &fields[1..];
                while let Some(option) =
                    rest.first().filter(|arg| arg.starts_with(['-', '+']) && arg.len() > 1)
                {
                    let on = option.starts_with('-');
                    rest = &rest[1..];
                    if option == "--" {
                        break;
                    }
                    if option.contains('e') {
                        self.exit_on_error = on;
                    }
                    if option.contains('x') {
                        self.trace = on;
                    }
                    if option.ends_with('o') && !rest.is_empty() {
                        rest = &rest[1..];
                    }
                }
                if !rest.is_empty() || fields.get(1).is_some_and(|arg| arg == "--") {
                    self.arguments = rest.to_vec();
                }
                0
            }
            "shift" => {
                let count = number(1, 1).max(0) as usize;
                if count > self.arguments.len() {
                    return 1;
                }
                self.arguments.drain(..count);
                0
            }
            "read" => self.read(&fields[1..]),
            "eval" => {
                self.eval(&fields[1..].join(" "));
                self.status
            }
            "." | "source" => match fields.get(1).map(std::fs::read_to_string) {
                Some(Ok(script)) => {
                    self.eval(&script);
                    self.status
                }
                Some(Err(error)) => {
                    eprintln!("sh: {}: {error}", fields[1]);
                    1
                }
                None => 2,
            },
            "exec" => {
                if fields.len() < 2 {
                    return 0;
                }
                let status = self.replace(&fields[1..]);
                self.leaving = true;
                status
            }
            "trap" => self.trap(&fields[1..]),
            "wait" => match fields.get(1).and_then(|pid| pid.parse().ok()) {
                Some(pid) => self.wait_for(Pid::from_raw(pid)),
                None => self.wait_all(),
            },
            "umask" => {
                if let Some(mode) = fields.get(1).and_then(|text| u32::from_str_radix(text, 8).ok()) {
                    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mode));
                }
                0
            }
            "command" | "type" => {
                let name = fields.get(1..).unwrap_or_default().iter().find(|arg| !arg.starts_with('-'));
                let Some(name) = name else { return 1 };
                if fields[0] == "command" && fields.get(1).is_some_and(|arg| !arg.starts_with('-')) {
                    self.simple(Vec::new(), &fields[1..]);
                    return self.status;
                }
                let path = self.get("PATH").unwrap_or_default();
                let found = path
                    .split(':')
                    .map(|folder| format!("{folder}/{name}"))
                    .find(|path| std::path::Path::new(path).exists());
                let known = builtin(name) || self.functions.contains_key(name) || find(name).is_some();
                match found {
                    Some(path) => println!("{path}"),
                    None if known => println!("{name}"),
                    None => return 127,
                }
                0
            }
            _ => 127,
        }
    }

    fn read(&mut self, names: &[String]) -> u8 {
        let raw = names.iter().any(|name| name == "-r");
        let names: Vec<&String> = names.iter().filter(|name| !name.starts_with('-')).collect();
        let mut line = String::new();
        let whole = match super::read_line(&mut line) {
            Ok(whole) => whole,
            Err(_) => return 1,
        };
        let mut line = line.trim_end_matches('\n').to_owned();
        if !raw {
            line = line.replace('\\', "");
        }
        let mut rest = line.trim();
        for (index, name) in names.iter().enumerate() {
            let (word, after) = if index + 1 == names.len() {
                (rest, "")
            } else {
                rest.split_once(char::is_whitespace).unwrap_or((rest, ""))
            };
            self.set(name, word);
            rest = after.trim_start();
        }
        u8::from(!whole)
    }

    fn trap(&mut self, args: &[String]) -> u8 {
        let Some((script, names)) = args.split_first() else {
            for (number, script) in &self.traps {
                println!("trap -- '{script}' {number}");
            }
            return 0;
        };
        for name in names {
            if name == "EXIT" || name == "0" {
                self.exit_trap = (script != "-").then(|| script.clone());
                continue;
            }
            let Some(Some(signal)) = process::signal_named(name) else {
                eprintln!("trap: {name}: no such signal");
                return 1;
            };
            let handler = match script.as_str() {
                "-" => SigHandler::SigDfl,
                "" => SigHandler::SigIgn,
                _ => SigHandler::Handler(note),
            };
            self.traps.remove(&(signal as i32));
            if matches!(handler, SigHandler::Handler(_)) {
                self.traps.insert(signal as i32, script.clone());
            }
            // Without SA_RESTART, so that `wait` and `read` notice.
            let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
            // SAFETY: the handler only sets a bit of an atomic.
            if unsafe { signal::sigaction(signal, &action) }.is_err() {
                return 1;
            }
        }
        0
    }
}

/// Whether `name` is one of them.
pub(super) fn builtin(name: &str) -> bool {
    matches!(
        name,
        ":" | "."
            | "break"
            | "cd"
            | "command"
            | "continue"
            | "eval"
            | "exec"
            | "exit"
            | "export"
            | "local"
            | "read"
            | "readonly"
            | "return"
            | "set"
            | "shift"
            | "source"
            | "trap"
            | "type"
            | "umask"
            | "unset"
            | "wait"
    )
}
