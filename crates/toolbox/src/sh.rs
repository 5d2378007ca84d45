//! A small POSIX-like shell: lists, pipelines, redirections, variables, command substitution, `if`, `while`, `until`, `for`, `case`,
//! functions, traps. No job control, no aliases. It forks, so no other thread may exist.

mod builtins;
mod descriptors;
mod exec;
mod expand;
mod parse;

use crate::{Failure, Outcome};
use exec::Shell;
use parse::Parsed;
use std::io::{self, IsTerminal, Read, Write};

pub(crate) fn main(args: &[String]) -> Outcome {
    let mut rest = args;
    let mut options = String::new();
    while let Some(letters) = rest.first().and_then(|arg| arg.strip_prefix('-')).filter(|arg| !arg.is_empty())
    {
        options += letters;
        rest = &rest[1..];
    }
    let mut shell = Shell::new();
    shell.exit_on_error = options.contains('e');
    shell.trace = options.contains('x');
    if options.contains('c') {
        let Some((script, words)) = rest.split_first() else {
            return Err(Failure::usage("sh -c SCRIPT [NAME ARGUMENT...]"));
        };
        shell.set_arguments(words.first().map_or("sh", String::as_str), words.get(1..).unwrap_or_default());
        return shell.run_script(script, true);
    }
    if let Some((file, words)) = rest.split_first() {
        let script = std::fs::read_to_string(file).map_err(|error| Failure::about(file, error))?;
        shell.set_arguments(file, words);
        return shell.run_script(&script, false);
    }
    shell.set_arguments("sh", &[]);
    from_stdin(&mut shell, options.contains('i'))
}

/// Reads command by command, one byte at a time, since what a command leaves unread belongs to the next one.
fn from_stdin(shell: &mut Shell, forced: bool) -> Outcome {
    let interactive = forced || io::stdin().is_terminal();
    if interactive {
        shell.be_interactive()?;
    }
    let mut text = String::new();
    loop {
        if interactive {
            let prompt = if !text.is_empty() {
                "> "
            } else if nix::unistd::geteuid().is_root() {
                "# "
            } else {
                "$ "
            };
            eprint!("{prompt}");
            io::stderr().flush()?;
        }
        let more = read_line(&mut text)?;
        match parse::program(&text) {
            Parsed::Whole(program) => {
                text.clear();
                if shell.run_program(&program) {
                    break;
                }
            }
            Parsed::Incomplete if more => continue,
            Parsed::Incomplete => {
                eprintln!("sh: syntax error: unexpected end");
                shell.status = 2;
            }
            Parsed::Wrong(error) => {
                eprintln!("sh: syntax error: {error}");
                text.clear();
                shell.status = 2;
            }
        }
        if !more {
            break;
        }
    }
    if interactive {
        eprintln!();
    }
    Ok(shell.finish())
}

fn read_line(text: &mut String) -> io::Result<bool> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        // Not through std's buffer: see above.
        match nix::unistd::read(io::stdin(), &mut byte) {
            Ok(0) => break,
            Ok(_) => bytes.push(byte[0]),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        if byte[0] == b'\n' {
            break;
        }
    }
    text.push_str(&String::from_utf8_lossy(&bytes));
    Ok(bytes.last() == Some(&b'\n'))
}

/// Reads a file descriptor to its end.
fn read_all(mut input: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = input.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
