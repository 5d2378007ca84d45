//! The rules of the grammar, as recovery goes through them.

use super::super::ast::Literal;
use super::super::lexer::Kind as Lexeme;
use super::super::set::{self, Set};
use super::super::{MAX_DEPTH, literal};
use super::{Flow, Point, Recovery, Stop, at, end};
use crate::escape::RESERVED;

impl Recovery<'_, '_> {
    pub(super) fn start(&mut self) -> Flow {
        let body = |run: &mut Self| {
            run.rule(at(1, set::EOF), Self::expr)?;
            run.take(1, set::EOF, end(2, 0))
        };
        match body(self) {
            Err(Stop::Fault(fault)) => {
                self.report(&fault)?;
                self.recover()
            }
            other => other,
        }
    }

    fn expr(&mut self) -> Flow {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.halt(format!("expression recursion limit exceeded: {MAX_DEPTH}")));
        }
        self.rule(end(3, set::QUESTION), Self::or)?;
        if self.next_is(set::QUESTION) {
            self.take(4, set::QUESTION, at(5, set::EXPR))?;
            self.rule(at(6, set::COLON), Self::or)?;
            self.take(6, set::COLON, at(7, set::EXPR))?;
            self.rule(end(8, 0), Self::expr)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn or(&mut self) -> Flow {
        self.rule(end(9, set::OR), Self::and)?;
        while self.next_is(set::OR) {
            self.take(10, set::OR, at(11, set::EXPR))?;
            self.rule(end(12, set::OR), Self::and)?;
        }
        Ok(())
    }

    fn and(&mut self) -> Flow {
        self.rule(end(13, set::AND), |run| run.relation(0))?;
        while self.next_is(set::AND) {
            self.take(14, set::AND, at(15, set::EXPR))?;
            self.rule(end(16, set::AND), |run| run.relation(0))?;
        }
        Ok(())
    }

    /// `level`: operators of a lower one end the rule.
    fn relation(&mut self, level: u8) -> Flow {
        self.rule(end(17, set::RELATIONS), |run| run.calc(0))?;
        while level <= 1 && self.next_is(set::RELATIONS) {
            self.take(18, set::RELATIONS, at(19, set::EXPR))?;
            self.rule(end(20, set::RELATIONS), |run| run.relation(2))?;
        }
        Ok(())
    }

    fn calc(&mut self, level: u8) -> Flow {
        self.rule(end(21, set::PRODUCTS | set::SUMS), Self::unary)?;
        loop {
            let next = match () {
                () if level <= 2 && self.next_is(set::PRODUCTS) => 3,
                () if level <= 1 && self.next_is(set::SUMS) => 2,
                () => return Ok(()),
            };
            self.take(22, set::PRODUCTS | set::SUMS, at(23, set::EXPR))?;
            self.rule(end(24, set::PRODUCTS | set::SUMS), |run| run.calc(next))?;
        }
    }

    fn unary(&mut self) -> Flow {
        self.sync(at(25, set::EXPR))?;
        let here = self.at;
        let (sign, id) = match self.ahead(1) {
            set::NOT => (set::NOT, 26),
            // A number with its sign is a member.
            set::MINUS if self.ahead(2) & set::NUMBERS != 0 => return self.rule(end(30, 0), Self::member),
            set::MINUS if self.ahead(2) & (set::MINUS | set::MEMBER) != 0 => (set::MINUS, 28),
            set::MINUS => return self.no_viable(here, here + 1),
            next if next & set::MEMBER != 0 => return self.rule(end(30, 0), Self::member),
            _ => return self.no_viable(here, here),
        };
        let more = at(id, sign | set::MEMBER);
        self.sync(at(id, sign))?;
        loop {
            self.take(id, sign, more)?;
            self.sync_loop(at(id + 1, sign | set::MEMBER))?;
            let (here, next) = (self.at, self.ahead(1));
            if next != sign {
                if next & set::MEMBER == 0 && sign == set::MINUS {
                    return self.no_viable(here, here);
                }
                break;
            }
            if sign == set::MINUS && self.ahead(2) & (set::MINUS | set::MEMBER) == 0 {
                return self.no_viable(here, here + 1);
            }
        }
        self.rule(end(31, 0), Self::member)
    }

    fn member(&mut self) -> Flow {
        const SUFFIX: Set = set::DOT | set::OPEN_LIST;
        self.rule(end(32, SUFFIX), Self::primary)?;
        loop {
            let here = self.at;
            self.state = 41;
            if self.next_is(set::DOT) {
                match self.ahead(2) {
                    set::IDENT if self.ahead(3) == set::OPEN => {
                        self.take(33, set::DOT, at(34, set::IDENT))?;
                        self.take(34, set::IDENT, at(35, set::OPEN))?;
                        self.arguments(36, end(38, SUFFIX))?;
                    }
                    set::QUESTION | set::IDENT | set::ESCAPED => {
                        self.take(39, set::DOT, at(40, set::QUESTION | set::NAMES))?;
                        self.optional(40, set::NAMES)?;
                        let start = self.at;
                        self.rule(end(42, SUFFIX), |run| run.name(start))?;
                    }
                    _ => return self.no_viable(here, here + 1),
                }
            } else if self.next_is(set::OPEN_LIST) {
                self.take(43, set::OPEN_LIST, at(44, set::QUESTION | set::EXPR))?;
                self.optional(44, set::EXPR)?;
                self.rule(at(46, set::CLOSE_LIST), Self::expr)?;
                self.take(46, set::CLOSE_LIST, end(47, SUFFIX))?;
            } else {
                return Ok(());
            }
        }
    }

    /// A question mark that may be there, before something else.
    fn optional(&mut self, id: u8, then: Set) -> Flow {
        self.sync(at(id, set::QUESTION | then))?;
        if self.next_is(set::QUESTION) {
            self.take(id + 1, set::QUESTION, at(id + 1, then))?;
        }
        Ok(())
    }

    /// From the opening parenthesis to the closing one.
    fn arguments(&mut self, id: u8, after: Point) -> Flow {
        let inside = at(id, set::EXPR | set::CLOSE);
        self.take(id, set::OPEN, inside)?;
        self.sync(inside)?;
        if self.next_is(set::EXPR) {
            self.rule(at(id + 1, set::CLOSE), Self::arguments_list)?;
        }
        self.take(id + 1, set::CLOSE, after)
    }

    fn arguments_list(&mut self) -> Flow {
        self.rule(end(48, set::COMMA), Self::expr)?;
        while self.next_is(set::COMMA) {
            self.take(49, set::COMMA, at(50, set::EXPR))?;
            self.rule(end(51, set::COMMA), Self::expr)?;
        }
        Ok(())
    }

    fn primary(&mut self) -> Flow {
        self.sync(at(52, set::MEMBER))?;
        let here = self.at;
        match self.ahead(1) {
            set::OPEN => {
                self.take(53, set::OPEN, at(54, set::EXPR))?;
                self.rule(at(55, set::CLOSE), Self::expr)?;
                self.take(55, set::CLOSE, end(56, 0))
            }
            set::OPEN_LIST => {
                let inside = at(57, set::QUESTION | set::EXPR | set::COMMA | set::CLOSE_LIST);
                self.take(57, set::OPEN_LIST, inside)?;
                self.elements(58, (set::QUESTION | set::EXPR, set::CLOSE_LIST), Self::list)
            }
            set::OPEN_MAP => {
                let inside = at(61, set::QUESTION | set::EXPR | set::COMMA | set::CLOSE_MAP);
                self.take(61, set::OPEN_MAP, inside)?;
                self.elements(62, (set::QUESTION | set::EXPR, set::CLOSE_MAP), Self::entries)
            }
            set::IDENT | set::DOT => self.named(),
            next if next & set::MEMBER != 0 => self.rule(end(65, 0), Self::literal),
            _ => self.no_viable(here, here),
        }
    }

    /// Behind an opening bracket: elements, a comma that may be there, and the closing bracket.
    fn elements(&mut self, id: u8, (first, close): (Set, Set), of: fn(&mut Self) -> Flow) -> Flow {
        self.sync(at(id, first | set::COMMA | close))?;
        if self.next_is(first) {
            self.rule(at(id + 1, set::COMMA | close), of)?;
        }
        self.sync(at(id + 1, set::COMMA | close))?;
        if self.next_is(set::COMMA) {
            self.take(id + 1, set::COMMA, at(id + 2, close))?;
        }
        self.take(id + 2, close, end(id + 2, 0))
    }

    /// An identifier, a call, or an object's literal.
    fn named(&mut self) -> Flow {
        let here = self.at;
        let mut ahead = if self.next_is(set::DOT) { 2 } else { 1 };
        if self.ahead(ahead) != set::IDENT {
            return self.no_viable(here, here + ahead - 1);
        }
        let name = here + ahead - 1;
        ahead += 1;
        if self.ahead(ahead) == set::OPEN {
            self.leading_dot(66)?;
            self.reserved(here, name);
            self.take(67, set::IDENT, at(68, set::OPEN))?;
            return self.arguments(69, end(71, 0));
        }
        while self.ahead(ahead) == set::DOT && self.ahead(ahead + 1) == set::IDENT {
            ahead += 2;
        }
        self.leading_dot(72)?;
        if set::of(self.token(here + ahead - 1)) != set::OPEN_MAP {
            self.reserved(here, name);
            return self.take(73, set::IDENT, end(74, 0));
        }
        self.take(75, set::IDENT, at(76, set::DOT | set::OPEN_MAP))?;
        while self.next_is(set::DOT) {
            self.take(77, set::DOT, at(78, set::IDENT))?;
            self.take(78, set::IDENT, at(76, set::DOT | set::OPEN_MAP))?;
        }
        let first = set::QUESTION | set::NAMES;
        self.take(76, set::OPEN_MAP, at(79, first | set::COMMA | set::CLOSE_MAP))?;
        self.elements(80, (first, set::CLOSE_MAP), Self::fields)
    }

    fn leading_dot(&mut self, id: u8) -> Flow {
        self.sync(at(id, set::DOT | set::IDENT))?;
        if self.next_is(set::DOT) {
            self.take(id, set::DOT, at(id, set::IDENT))?;
        }
        Ok(())
    }

    fn reserved(&mut self, start: usize, name: usize) {
        let text = self.token(name).text;
        if RESERVED.contains(&text) {
            let message = format!("reserved identifier: {text}");
            self.part(start, message);
        }
    }

    fn list(&mut self) -> Flow {
        self.rule(end(83, set::COMMA), Self::element)?;
        while self.next_is(set::COMMA) && self.ahead(2) & (set::QUESTION | set::EXPR) != 0 {
            self.take(84, set::COMMA, at(85, set::QUESTION | set::EXPR))?;
            self.rule(end(86, set::COMMA), Self::element)?;
        }
        Ok(())
    }

    fn element(&mut self) -> Flow {
        self.optional(87, set::EXPR)?;
        self.rule(end(89, 0), Self::expr)
    }

    fn entries(&mut self) -> Flow {
        self.entry(Self::element)?;
        while self.next_is(set::COMMA) && self.ahead(2) & (set::QUESTION | set::EXPR) != 0 {
            self.take(90, set::COMMA, at(91, set::QUESTION | set::EXPR))?;
            self.entry(Self::element)?;
        }
        Ok(())
    }

    fn fields(&mut self) -> Flow {
        let start = self.at;
        self.entry(|run| run.field(start))?;
        while self.next_is(set::COMMA) && self.ahead(2) & (set::QUESTION | set::NAMES) != 0 {
            self.take(92, set::COMMA, at(93, set::QUESTION | set::NAMES))?;
            self.entry(|run| run.field(start))?;
        }
        Ok(())
    }

    fn entry(&mut self, key: impl FnOnce(&mut Self) -> Flow) -> Flow {
        let known = self.later.len();
        self.rule(at(94, set::COLON), key)?;
        self.take(94, set::COLON, at(95, set::EXPR)).inspect_err(|_| self.later.truncate(known))?;
        self.rule(end(96, set::COMMA), Self::expr)
    }

    /// `start`: where a name that is none is told of.
    fn field(&mut self, start: usize) -> Flow {
        self.optional(97, set::NAMES)?;
        self.rule(end(99, 0), |run| run.name(start))
    }

    fn name(&mut self, start: usize) -> Flow {
        let found = self.identifier(start);
        if let Err(Stop::Fault(_)) = found {
            self.part(start, "unsupported ident kind".to_owned());
        }
        found
    }

    fn identifier(&mut self, start: usize) -> Flow {
        self.sync(at(100, set::NAMES))?;
        let here = self.at;
        match self.ahead(1) {
            set::IDENT => self.take(101, set::IDENT, end(102, 0)),
            set::ESCAPED => {
                self.part(start, "unsupported syntax: '`'".to_owned());
                self.take(102, set::ESCAPED, end(102, 0))
            }
            _ => self.no_viable(here, here),
        }
    }

    fn literal(&mut self) -> Flow {
        self.sync(at(103, set::MINUS | set::LITERALS))?;
        let here = self.at;
        let minus = self.next_is(set::MINUS);
        let number = if minus { here + 1 } else { here };
        if minus {
            if self.ahead(2) & set::NUMBERS == 0 {
                return self.no_viable(here, here + 1);
            }
            self.take(104, set::MINUS, at(105, set::NUMBERS))?;
        } else if !self.next_is(set::LITERALS) {
            return self.no_viable(here, here);
        }
        let token = *self.token(number);
        if token.kind != Lexeme::Sign {
            let read: Result<Literal, &str> = literal::read(token, minus);
            if let Err(message) = read {
                self.part(here, message.to_owned());
            }
        }
        self.take(106, set::LITERALS, end(107, 0))
    }
}
