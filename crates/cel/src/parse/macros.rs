//! The macros: calls that become other trees before types are checked.

use std::sync::Arc;

use super::ast::{ACCU, Entry, Expr, FieldInit, Fold, Kind, Literal, UNUSED, op};
use super::{MAX_NODES, Parsed, Parser};

/// What the list to sort is called inside `sortBy`.
const SORT_INPUT: &str = "@__sortBy_input__";

/// A fault in a macro's argument: where, and what.
type Fault = (usize, String);

impl Parser<'_> {
    pub(super) fn global_call(&mut self, offset: usize, name: Arc<str>, mut args: Vec<Expr>) -> Parsed<Expr> {
        if &*name == "has" && args.len() == 1 {
            let arg = args.remove(0);
            let at = self.offsets[arg.id as usize];
            return Ok(match arg.kind {
                Kind::Select { operand, field, .. } => {
                    self.make(offset, Kind::Select { operand, field, test: true })
                }
                _ => self.fault(at, "invalid argument to has() macro".into()),
            });
        }
        Ok(self.make(offset, Kind::Call { target: None, function: name, args }))
    }

    pub(super) fn member_call(
        &mut self,
        offset: usize,
        target: Expr,
        name: Arc<str>,
        args: Vec<Expr>,
    ) -> Parsed<Expr> {
        let result = match (&*name, args.len()) {
            ("all" | "exists" | "exists_one", 2 | 3) | ("existsOne", 3) => {
                self.quantifier(offset, &name, target, args)
            }
            ("map", 2 | 3) | ("filter", 2) => self.map_or_filter(offset, &name, target, args),
            ("transformList" | "transformMap" | "transformMapEntry", 3 | 4) => {
                self.transform(offset, &name, target, args)
            }
            ("optMap" | "optFlatMap", 2) => {
                if self.offsets.len() > MAX_NODES {
                    return Err(self.too_deep(format!("expression has more than {MAX_NODES} nodes")));
                }
                self.optional(offset, &name, target, args)
            }
            ("sortBy", 2) => self.sort_by(offset, target, args),
            ("bind", 3)
                if self.syntax.bind && matches!(&target.kind, Kind::Ident(name) if &**name == "cel") =>
            {
                self.bind(offset, args)
            }
            _ => {
                let kind = Kind::Call { target: Some(Box::new(target)), function: name, args };
                return Ok(self.make(offset, kind));
            }
        };
        Ok(match result {
            Ok(expr) => expr,
            Err((at, message)) => self.fault(at, message),
        })
    }

    fn variable(&self, arg: &Expr, complaint: &str) -> Result<Arc<str>, Fault> {
        let at = self.offsets[arg.id as usize];
        match &arg.kind {
            Kind::Ident(name) if matches!(&**name, ACCU | "__result__") => {
                Err((at, "iteration variable overwrites accumulator variable".into()))
            }
            Kind::Ident(name) => Ok(name.clone()),
            _ => Err((at, complaint.into())),
        }
    }

    /// The one or two variables at the front of the arguments; the others remain.
    fn variables(&self, args: &mut Vec<Expr>, two: bool) -> Result<(Arc<str>, Option<Arc<str>>), Fault> {
        let simple = "argument must be a simple name";
        let first = args.remove(0);
        let var = self.variable(&first, simple)?;
        if !two {
            return Ok((var, None));
        }
        let second = args.remove(0);
        let var2 = self.variable(&second, simple)?;
        if var == var2 {
            return Err((self.offsets[second.id as usize], format!("duplicate variable name: {var}")));
        }
        Ok((var, Some(var2)))
    }

    fn lit(&mut self, offset: usize, literal: Literal) -> Expr {
        self.make(offset, Kind::Literal(literal))
    }

    fn ident(&mut self, offset: usize, name: &str) -> Expr {
        self.make(offset, Kind::Ident(name.into()))
    }

    fn list_of(&mut self, offset: usize, elements: Vec<Expr>) -> Expr {
        let optional = vec![false; elements.len()];
        self.make(offset, Kind::List { elements, optional })
    }

    fn quantifier(
        &mut self,
        offset: usize,
        name: &str,
        range: Expr,
        mut args: Vec<Expr>,
    ) -> Result<Expr, Fault> {
        let two = args.len() == 3;
        let (var, var2) = self.variables(&mut args, two)?;
        let test = args.remove(0);
        let (init, condition, step, result) = match name {
            "all" => {
                let init = self.lit(offset, Literal::Bool(true));
                let accu = self.ident(offset, ACCU);
                let condition = self.call(offset, op::NOT_STRICTLY_FALSE, vec![accu]);
                let accu = self.ident(offset, ACCU);
                let step = self.call(offset, op::AND, vec![accu, test]);
                (init, condition, step, self.ident(offset, ACCU))
            }
            "exists" => {
                let init = self.lit(offset, Literal::Bool(false));
                let accu = self.ident(offset, ACCU);
                let not = self.call(offset, op::NOT, vec![accu]);
                let condition = self.call(offset, op::NOT_STRICTLY_FALSE, vec![not]);
                let accu = self.ident(offset, ACCU);
                let step = self.call(offset, op::OR, vec![accu, test]);
                (init, condition, step, self.ident(offset, ACCU))
            }
            _ => {
                let init = self.lit(offset, Literal::Int(0));
                let condition = self.lit(offset, Literal::Bool(true));
                let (accu, one) = (self.ident(offset, ACCU), self.lit(offset, Literal::Int(1)));
                let more = self.call(offset, op::ADD, vec![accu, one]);
                let same = self.ident(offset, ACCU);
                let step = self.call(offset, op::CONDITIONAL, vec![test, more, same]);
                let (accu, one) = (self.ident(offset, ACCU), self.lit(offset, Literal::Int(1)));
                (init, condition, step, self.call(offset, op::EQUALS, vec![accu, one]))
            }
        };
        let accu = ACCU.into();
        let fold = Fold { range, var, var2, accu, init, condition, step, result };
        Ok(self.make(offset, Kind::Fold(Box::new(fold))))
    }

    /// A fold that collects: `init` grows by `step`, where `filter` lets it.
    fn collect(
        &mut self,
        offset: usize,
        range: Expr,
        vars: (Arc<str>, Option<Arc<str>>),
        init: Expr,
        step: Expr,
        filter: Option<Expr>,
    ) -> Expr {
        let step = match filter {
            None => step,
            Some(filter) => {
                let same = self.ident(offset, ACCU);
                self.call(offset, op::CONDITIONAL, vec![filter, step, same])
            }
        };
        let condition = self.lit(offset, Literal::Bool(true));
        let result = self.ident(offset, ACCU);
        let (var, var2) = vars;
        let fold = Fold { range, var, var2, accu: ACCU.into(), init, condition, step, result };
        self.make(offset, Kind::Fold(Box::new(fold)))
    }

    fn append(&mut self, offset: usize, element: Expr) -> Expr {
        let accu = self.ident(offset, ACCU);
        let one = self.list_of(offset, vec![element]);
        self.call(offset, op::ADD, vec![accu, one])
    }

    fn map_or_filter(
        &mut self,
        offset: usize,
        name: &str,
        range: Expr,
        mut args: Vec<Expr>,
    ) -> Result<Expr, Fault> {
        let var_expr = args.remove(0);
        let var = self.variable(&var_expr, "argument is not an identifier")?;
        let init = self.list_of(offset, Vec::new());
        let (element, filter) = match (name, args.len()) {
            ("filter", _) => (var_expr, Some(args.remove(0))),
            (_, 2) => {
                let filter = args.remove(0);
                (args.remove(0), Some(filter))
            }
            _ => (args.remove(0), None),
        };
        let step = self.append(offset, element);
        Ok(self.collect(offset, range, (var, None), init, step, filter))
    }

    fn transform(
        &mut self,
        offset: usize,
        name: &str,
        range: Expr,
        mut args: Vec<Expr>,
    ) -> Result<Expr, Fault> {
        let vars = self.variables(&mut args, true)?;
        let filter = (args.len() == 2).then(|| args.remove(0));
        let value = args.remove(0);
        let (init, step) = match name {
            "transformList" => (self.list_of(offset, Vec::new()), self.append(offset, value)),
            _ => {
                let init = self.make(offset, Kind::Map(Vec::new()));
                let accu = self.ident(offset, ACCU);
                let mut insert = vec![accu];
                if name == "transformMap" {
                    insert.push(self.ident(offset, &vars.0));
                }
                insert.push(value);
                (init, self.call(offset, op::MAP_INSERT, insert))
            }
        };
        Ok(self.collect(offset, range, vars, init, step, filter))
    }

    /// A fold over nothing that names `init` for `result`.
    fn name_value(&mut self, offset: usize, var: Arc<str>, init: Expr, result: Expr) -> Expr {
        let range = self.list_of(offset, Vec::new());
        let condition = self.lit(offset, Literal::Bool(false));
        let step = self.ident(offset, &var);
        let fold = Fold { range, var: UNUSED.into(), var2: None, accu: var, init, condition, step, result };
        self.make(offset, Kind::Fold(Box::new(fold)))
    }

    fn bind(&mut self, offset: usize, mut args: Vec<Expr>) -> Result<Expr, Fault> {
        let var_expr = args.remove(0);
        let at = self.offsets[var_expr.id as usize];
        let Kind::Ident(var) = var_expr.kind else {
            return Err((at, "cel.bind() variable names must be simple identifiers".into()));
        };
        let init = args.remove(0);
        let result = args.remove(0);
        Ok(self.name_value(offset, var, init, result))
    }

    /// The list sorted by what an expression makes of each element.
    fn sort_by(&mut self, offset: usize, target: Expr, args: Vec<Expr>) -> Result<Expr, Fault> {
        let at = self.offsets[target.id as usize];
        if matches!(target.kind, Kind::Literal(_) | Kind::Map(_) | Kind::Object { .. }) {
            let message =
                "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
            return Err((at, message.into()));
        }
        let input = self.ident(offset, SORT_INPUT);
        let keys = self.map_or_filter(offset, "map", input, args)?;
        let input = self.ident(offset, SORT_INPUT);
        let kind = Kind::Call {
            target: Some(Box::new(input)),
            function: "@sortByAssociatedKeys".into(),
            args: vec![keys],
        };
        let sorted = self.make(offset, kind);
        Ok(self.name_value(offset, SORT_INPUT.into(), target, sorted))
    }

    fn optional(
        &mut self,
        offset: usize,
        name: &str,
        target: Expr,
        mut args: Vec<Expr>,
    ) -> Result<Expr, Fault> {
        let var_expr = args.remove(0);
        let at = self.offsets[var_expr.id as usize];
        let Kind::Ident(var) = var_expr.kind else {
            return Err((at, format!("{name}() variable name must be a simple identifier")));
        };
        let result = args.remove(0);
        let copy = self.copy(&target);
        let member = |target: Expr, function: &str| Kind::Call {
            target: Some(Box::new(target)),
            function: function.into(),
            args: Vec::new(),
        };
        let present = self.make(offset, member(target, "hasValue"));
        let value = self.make(offset, member(copy, "value"));
        let mut yes = self.name_value(offset, var, value, result);
        if name == "optMap" {
            yes = self.call(offset, "optional.of", vec![yes]);
        }
        let no = self.call(offset, "optional.none", Vec::new());
        Ok(self.call(offset, op::CONDITIONAL, vec![present, yes, no]))
    }

    /// The same tree with numbers of its own.
    fn copy(&mut self, expr: &Expr) -> Expr {
        let offset = self.offsets[expr.id as usize];
        let kind = match &expr.kind {
            Kind::Literal(_) | Kind::Ident(_) | Kind::Missing => expr.kind.clone(),
            Kind::Select { operand, field, test } => {
                Kind::Select { operand: Box::new(self.copy(operand)), field: field.clone(), test: *test }
            }
            Kind::Call { target, function, args } => Kind::Call {
                target: target.as_ref().map(|target| Box::new(self.copy(target))),
                function: function.clone(),
                args: args.iter().map(|arg| self.copy(arg)).collect(),
            },
            Kind::List { elements, optional } => Kind::List {
                elements: elements.iter().map(|one| self.copy(one)).collect(),
                optional: optional.clone(),
            },
            Kind::Map(entries) => Kind::Map(
                entries
                    .iter()
                    .map(|one| Entry {
                        key: self.copy(&one.key),
                        value: self.copy(&one.value),
                        optional: one.optional,
                    })
                    .collect(),
            ),
            Kind::Object { name, fields } => Kind::Object {
                name: name.clone(),
                fields: fields
                    .iter()
                    .map(|one| FieldInit {
                        id: self.node(self.offsets[one.id as usize]),
                        name: one.name.clone(),
                        value: self.copy(&one.value),
                        optional: one.optional,
                    })
                    .collect(),
            },
            Kind::Fold(fold) => Kind::Fold(Box::new(Fold {
                range: self.copy(&fold.range),
                var: fold.var.clone(),
                var2: fold.var2.clone(),
                accu: fold.accu.clone(),
                init: self.copy(&fold.init),
                condition: self.copy(&fold.condition),
                step: self.copy(&fold.step),
                result: self.copy(&fold.result),
            })),
        };
        self.make(offset, kind)
    }
}
