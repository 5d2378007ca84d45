//! Every fault of a text that is no expression, in cel-go's words. Its parser reports a fault, leaves a token out or puts
//! one in, or passes over tokens until something can follow, and goes on; so does this one, over the same grammar and with
//! the same limits. It makes no tree: the parser proper makes that of what has no faults.

mod grammar;

use std::ops::Range;

use super::lexer::{Kind as Lexeme, Token};
use super::quoted;
use super::set::{self, Set};
use crate::error::{Issue, MAX_ISSUES};

/// How often a parse goes on after a fault, and the most tokens that it then passes over at once.
const MAX_RECOVERIES: usize = 30;
const MAX_PASSED: usize = 256;

/// A place in a rule of the grammar: what may come there, and whether the rule may end there.
#[derive(Clone, Copy)]
struct Point {
    /// Tells places apart.
    id: u8,
    set: Set,
    end: bool,
}

const fn at(id: u8, set: Set) -> Point {
    Point { id, set, end: false }
}

const fn end(id: u8, set: Set) -> Point {
    Point { id, set, end: true }
}

enum Fault {
    /// No branch of the grammar goes on with the second token, counted from the first.
    NoViable(usize, usize),
    /// Something else is expected than the next token.
    Mismatch(Set),
}

enum Stop {
    /// The rule cannot go on; it recovers.
    Fault(Fault),
    /// Nothing goes on.
    Halt,
}

type Flow = Result<(), Stop>;

pub(super) struct Recovery<'t, 's> {
    source: &'s str,
    tokens: &'t [Token<'s>],
    at: usize,
    issues: &'t mut Vec<Issue>,
    /// What is wrong with well-formed parts. cel-go finds it afterwards.
    later: Vec<Issue>,
    /// A fault has been reported, and no token been read since.
    recovering: bool,
    /// Where the last recovery was: the token, and the places in the grammar.
    last: Option<(usize, Vec<u8>)>,
    recoveries: usize,
    state: u8,
    /// Where the rules that are under way go on.
    calls: Vec<Point>,
    /// How many expressions are inside one another.
    depth: usize,
    /// What of the text is no token, in characters.
    skipped: &'t [Range<usize>],
}

/// Adds the faults of a text to those that its tokens have.
pub(super) fn faults<'s>(
    source: &'s str,
    tokens: &[Token<'s>],
    skipped: &[Range<usize>],
    issues: &mut Vec<Issue>,
) {
    let mut run = Recovery {
        source,
        tokens,
        at: 0,
        issues,
        later: Vec::new(),
        recovering: false,
        last: None,
        recoveries: 0,
        state: 0,
        calls: Vec::new(),
        depth: 0,
        skipped,
    };
    // Whoever halts has said why.
    if run.start().is_ok() {
        let Recovery { issues, later, .. } = run;
        issues.extend(later);
    }
}

impl Recovery<'_, '_> {
    /// The kind of a token ahead; the next is the first.
    fn ahead(&self, count: usize) -> Set {
        set::of(&self.tokens[(self.at + count - 1).min(self.tokens.len() - 1)])
    }

    fn next_is(&self, set: Set) -> bool {
        self.ahead(1) & set != 0
    }

    fn token(&self, index: usize) -> &Token<'_> {
        &self.tokens[index.min(self.tokens.len() - 1)]
    }

    fn consume(&mut self) {
        if !self.next_is(set::EOF) {
            self.at += 1;
        }
    }

    /// A token was right.
    fn matched(&mut self) {
        self.recovering = false;
        self.last = None;
    }

    /// A fault of a well-formed part.
    fn part(&mut self, index: usize, message: String) {
        let offset = Some(self.token(index).offset);
        self.later.push(Issue { offset, message });
    }

    fn syntax(&mut self, index: usize, what: &str) -> Flow {
        let offset = Some(self.token(index).offset);
        if self.issues.len() < MAX_ISSUES {
            self.issues.push(Issue { offset, message: format!("Syntax error: {what}") });
            return Ok(());
        }
        let message = format!("Syntax error: More than {MAX_ISSUES} syntax errors");
        self.issues.push(Issue { offset, message });
        Err(Stop::Halt)
    }

    fn halt(&mut self, message: String) -> Stop {
        self.issues.push(Issue { offset: None, message });
        Stop::Halt
    }

    /// What may come at a place, with what follows the rules that end there.
    fn expected(&self, point: Point) -> Set {
        let mut out = point.set;
        let mut open = point.end;
        for call in self.calls.iter().rev() {
            if !open {
                return out;
            }
            out |= call.set;
            open = call.end;
        }
        if open { out | set::EOF } else { out }
    }

    /// What follows any of the rules that are under way.
    fn follow(&self) -> Set {
        self.calls.iter().fold(0, |all, call| all | call.set)
    }

    fn pass_until(&mut self, set: Set) -> Flow {
        let mut passed = 0;
        while !self.next_is(set | set::EOF) {
            if passed == MAX_PASSED {
                let message = format!("error recovery token lookahead limit exceeded: {MAX_PASSED}");
                return Err(self.halt(message));
            }
            passed += 1;
            self.consume();
        }
        Ok(())
    }

    fn unwanted(&mut self, point: Point) -> Flow {
        if self.recovering {
            return Ok(());
        }
        self.recovering = true;
        let expecting = set::shown(self.expected(point));
        let found = quoted(self.token(self.at).text);
        self.syntax(self.at, &format!("extraneous input {found} expecting {expecting}"))
    }

    /// Leaves the next token out, if the one behind it is what is expected.
    fn leave_out(&mut self, point: Point) -> Result<bool, Stop> {
        if self.expected(point) & self.ahead(2) == 0 {
            return Ok(false);
        }
        self.unwanted(point)?;
        self.consume();
        self.matched();
        Ok(true)
    }

    /// Before a branch.
    fn sync(&mut self, point: Point) -> Flow {
        self.state = point.id;
        if self.recovering || point.end || self.next_is(point.set) || self.leave_out(point)? {
            return Ok(());
        }
        Err(Stop::Fault(Fault::Mismatch(self.expected(point))))
    }

    /// Behind a turn of a loop.
    fn sync_loop(&mut self, point: Point) -> Flow {
        self.state = point.id;
        if self.recovering || point.end || self.next_is(point.set) {
            return Ok(());
        }
        self.unwanted(point)?;
        self.pass_until(self.expected(point) | self.follow())
    }

    /// One token, which the grammar wants at a place.
    fn take(&mut self, id: u8, wanted: Set, after: Point) -> Flow {
        self.state = id;
        if self.next_is(wanted) {
            self.matched();
            self.consume();
            return Ok(());
        }
        self.attempt()?;
        let here = at(id, wanted);
        if self.leave_out(here)? {
            self.consume();
            return Ok(());
        }
        if self.next_is(self.expected(after)) {
            if !self.recovering {
                self.recovering = true;
                let found = quoted(self.token(self.at).text);
                self.syntax(self.at, &format!("missing {} at {found}", set::shown(wanted)))?;
            }
            return Ok(());
        }
        Err(Stop::Fault(Fault::Mismatch(wanted)))
    }

    fn attempt(&mut self) -> Flow {
        if self.recoveries == MAX_RECOVERIES {
            self.syntax(self.at, &format!("error recovery attempt limit exceeded: {MAX_RECOVERIES}"))?;
            return Err(Stop::Halt);
        }
        self.recoveries += 1;
        Ok(())
    }

    /// A rule, after which the one under way goes on at a place.
    fn rule(&mut self, after: Point, body: impl FnOnce(&mut Self) -> Flow) -> Flow {
        self.calls.push(after);
        match body(self) {
            Err(Stop::Fault(fault)) => {
                self.report(&fault)?;
                self.recover()?;
            }
            other => other?,
        }
        self.calls.pop();
        Ok(())
    }

    fn report(&mut self, fault: &Fault) -> Flow {
        if self.recovering {
            return Ok(());
        }
        self.recovering = true;
        match *fault {
            Fault::Mismatch(expected) => {
                let found = quoted(self.token(self.at).text);
                self.syntax(self.at, &format!("mismatched input {found} expecting {}", set::shown(expected)))
            }
            Fault::NoViable(from, to) => {
                let input = self.text(from, to);
                let word = input.strip_prefix('.').filter(|word| matches!(*word, "true" | "false" | "null"));
                match word {
                    Some(word) => self.syntax(to, &format!("mismatched input '{word}' expecting IDENTIFIER")),
                    None => self.syntax(to, &format!("no viable alternative at input {}", quoted(&input))),
                }
            }
        }
    }

    /// The text from one token to another with what is between them.
    fn text(&self, from: usize, to: usize) -> String {
        let (first, last) = (self.token(from), self.token(to));
        if first.kind == Lexeme::Eof {
            return "<EOF>".to_owned();
        }
        let to = match last.kind {
            Lexeme::Eof => usize::MAX,
            _ => last.offset + last.text.chars().count(),
        };
        let kept = |at: usize| {
            let next = self.skipped.partition_point(|skipped| skipped.end <= at);
            at < to && self.skipped.get(next).is_none_or(|skipped| !skipped.contains(&at))
        };
        let chars = self.source.chars().enumerate().skip(first.offset);
        chars.filter(|(at, _)| kept(*at)).map(|(_, c)| c).collect()
    }

    fn recover(&mut self) -> Flow {
        self.attempt()?;
        let (here, state) = (self.at, self.state);
        let mut states = match self.last.take() {
            Some((index, states)) => {
                // Again in the same place: at least one token has to go.
                if index == here && states.contains(&state) {
                    self.consume();
                }
                states
            }
            None => Vec::new(),
        };
        states.push(state);
        self.last = Some((self.at, states));
        self.pass_until(self.follow())
    }

    fn no_viable(&self, from: usize, to: usize) -> Flow {
        Err(Stop::Fault(Fault::NoViable(from, to)))
    }
}
