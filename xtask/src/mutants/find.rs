//! Where the code of a room can be broken in one place.

use std::ops::Range;

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, ReturnType, Stmt, Type, UnOp};

/// A change in one place: `range` of the file is replaced where the mutant runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mutant {
    /// The file, from the top of the repository.
    pub(super) file: String,
    pub(super) line: usize,
    pub(super) column: usize,
    /// Bytes of the file.
    pub(super) range: Range<usize>,
    /// What stands there, or the function whose body starts there.
    pub(super) old: String,
    pub(super) kind: Kind,
}

/// How the change is written into a file that holds both forms.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// An expression in place of the expression.
    Expression(String),
    /// A statement left out.
    Statement,
    /// Statements in place of statements.
    Statements(String),
    /// This value returned in front of what stands at the range, a function's body.
    Body(String),
}

impl Mutant {
    /// What people read, and what a result is kept under.
    pub(super) fn name(&self) -> String {
        let old = cut(&self.old.split_whitespace().collect::<Vec<_>>().join(" "));
        let new = match &self.kind {
            Kind::Expression(new) | Kind::Statements(new) => {
                new.split_whitespace().collect::<Vec<_>>().join(" ")
            }
            Kind::Statement => "(left out)".into(),
            Kind::Body(value) => format!("return {value}"),
        };
        let new = cut(&new);
        format!("{}:{}:{}: {old} => {new}", self.file, self.line, self.column)
    }
}

/// Both ends of a long text: two changes of one place differ in either.
fn cut(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= 90 {
        return text.to_owned();
    }
    let [begin, end] = [&characters[..44], &characters[characters.len() - 44..]];
    format!("{}..{}", begin.iter().collect::<String>(), end.iter().collect::<String>())
}

/// All mutants of a file with the text `text`; code of tests and constants has none.
pub(super) fn in_file(file: &str, text: &str) -> syn::Result<Vec<Mutant>> {
    let mut finder = Finder { file, text, found: Vec::new() };
    finder.visit_file(&syn::parse_file(text)?);
    Ok(finder.found)
}

/// Modules of a file that are for tests alone and stand in files of their own.
pub(super) fn test_modules(text: &str) -> syn::Result<Vec<String>> {
    let mut found = Vec::new();
    for item in syn::parse_file(text)?.items {
        if let syn::Item::Mod(module) = item
            && module.content.is_none()
            && is_for_tests(&module.attrs)
        {
            found.push(module.ident.to_string());
        }
    }
    Ok(found)
}

struct Finder<'a> {
    file: &'a str,
    text: &'a str,
    found: Vec<Mutant>,
}

impl Finder<'_> {
    fn add(&mut self, span: Span, kind: Kind) {
        let range = span.byte_range();
        let Some(old) = self.text.get(range.clone()) else { return };
        if kind == Kind::Expression(old.to_owned()) {
            return;
        }
        let (file, start) = (self.file.to_owned(), span.start());
        let (line, column) = (start.line, start.column + 1);
        self.found.push(Mutant { file, line, column, range, old: old.to_owned(), kind });
    }

    fn expression(&mut self, span: Span, new: String) {
        self.add(span, Kind::Expression(new));
    }

    fn text_of(&self, span: Span) -> String {
        self.text.get(span.byte_range()).unwrap_or_default().to_owned()
    }

    /// A condition that is always true, and always false.
    fn condition(&mut self, condition: &Expr) {
        if !matches!(condition, Expr::Let(_)) && !holds_let(condition) {
            for value in ["true", "false"] {
                self.expression(condition.span(), value.into());
            }
        }
    }

    fn body(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let ReturnType::Type(_, output) = &signature.output else { return };
        let Some(first) = block.stmts.first() else { return };
        let at = first.span().byte_range().start;
        for value in values_of(output) {
            self.found.push(Mutant {
                file: self.file.to_owned(),
                line: signature.span().start().line,
                column: signature.span().start().column + 1,
                range: at..at,
                old: format!("fn {}", signature.ident),
                kind: Kind::Body(value),
            });
        }
    }
}

/// Whether a condition binds names, so that it cannot stand anywhere else.
fn holds_let(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(binary) => holds_let(&binary.left) || holds_let(&binary.right),
        _ => false,
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let named = attribute.path().is_ident("test");
        named
            || matches!(&attribute.meta, syn::Meta::List(list)
            if list.path.is_ident("cfg") && list.tokens.to_string().contains("test"))
    })
}

/// Values that a function of this type might return by mistake.
fn values_of(output: &Type) -> Vec<String> {
    let Type::Path(path) = output else { return Vec::new() };
    let Some(last) = path.path.segments.last() else { return Vec::new() };
    let inner = match &last.arguments {
        syn::PathArguments::AngleBracketed(list) => list.args.first(),
        _ => None,
    };
    match last.ident.to_string().as_str() {
        "bool" => vec!["true".into(), "false".into()],
        "usize" | "u64" | "u32" | "u16" | "u8" | "i64" | "i32" => vec!["0".into(), "1".into()],
        "f64" | "f32" => vec!["0.0".into(), "1.0".into()],
        "String" => vec!["String::new()".into()],
        "Vec" => vec!["Vec::new()".into()],
        "Option" => vec!["None".into()],
        "Result" => match inner {
            Some(syn::GenericArgument::Type(Type::Tuple(unit))) if unit.elems.is_empty() => {
                vec!["Ok(())".into()]
            }
            Some(syn::GenericArgument::Type(inner)) => {
                values_of(inner).into_iter().map(|value| format!("Ok({value})")).collect()
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// The signs that a sign may be mistaken for.
fn others(sign: &BinOp) -> &'static [&'static str] {
    match sign {
        BinOp::Eq(_) => &["!="],
        BinOp::Ne(_) => &["=="],
        BinOp::Lt(_) => &["<=", ">"],
        BinOp::Le(_) => &["<", ">"],
        BinOp::Gt(_) => &[">=", "<"],
        BinOp::Ge(_) => &[">", "<"],
        BinOp::And(_) => &["||"],
        BinOp::Or(_) => &["&&"],
        BinOp::Add(_) => &["-"],
        BinOp::Sub(_) => &["+"],
        BinOp::Mul(_) => &["+", "/"],
        BinOp::Div(_) => &["*"],
        BinOp::Rem(_) => &["*"],
        BinOp::BitAnd(_) => &["|"],
        BinOp::BitOr(_) => &["&"],
        BinOp::Shl(_) => &[">>"],
        BinOp::Shr(_) => &["<<"],
        BinOp::AddAssign(_) => &["-="],
        BinOp::SubAssign(_) => &["+="],
        BinOp::MulAssign(_) => &["+="],
        BinOp::DivAssign(_) => &["*="],
        BinOp::BitOrAssign(_) => &["&="],
        BinOp::BitAndAssign(_) => &["|="],
        _ => &[],
    }
}

/// A method that takes the same and means another thing.
fn other_method(name: &str) -> Option<&'static str> {
    Some(match name {
        "min" => "max",
        "max" => "min",
        "first" => "last",
        "last" => "first",
        "any" => "all",
        "all" => "any",
        "is_some" => "is_none",
        "is_none" => "is_some",
        "is_ok" => "is_err",
        "is_err" => "is_ok",
        "skip" => "take",
        "take" => "skip",
        "starts_with" => "ends_with",
        "ends_with" => "starts_with",
        "floor" => "ceil",
        "ceil" => "floor",
        "div_ceil" => "wrapping_div",
        _ => return None,
    })
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            // Types and constants compute nothing while a test runs.
            _ => return,
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if item.sig.constness.is_none() {
            self.body(&item.sig, &item.block);
            self.visit_block(&item.block);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        if let syn::ImplItem::Fn(item) = item
            && item.sig.constness.is_none()
            && !is_for_tests(&item.attrs)
        {
            self.body(&item.sig, &item.block);
            self.visit_block(&item.block);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast syn::TraitItem) {
        if let syn::TraitItem::Fn(item) = item
            && let Some(block) = &item.default
        {
            self.body(&item.sig, block);
            self.visit_block(block);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if let Stmt::Expr(Expr::MethodCall(_) | Expr::Call(_) | Expr::Assign(_), Some(_)) =
            statement
        {
            self.add(statement.span(), Kind::Statement);
        }
        match statement {
            Stmt::Item(_) | Stmt::Macro(_) => {}
            _ => visit::visit_stmt(self, statement),
        }
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        match expression {
            Expr::Binary(binary) if !holds_let(expression) => {
                let left = self.text_of(binary.left.span());
                let right = self.text_of(binary.right.span());
                for sign in others(&binary.op) {
                    self.expression(expression.span(), format!("{left} {sign} {right}"));
                }
            }
            Expr::Unary(unary) if matches!(unary.op, UnOp::Not(_) | UnOp::Neg(_)) => {
                self.expression(expression.span(), self.text_of(unary.expr.span()));
            }
            Expr::MethodCall(call) => {
                if let Some(other) = other_method(&call.method.to_string()) {
                    let whole = expression.span().byte_range();
                    let name = call.method.span().byte_range();
                    let before = self.text.get(whole.start..name.start).unwrap_or_default();
                    let behind = self.text.get(name.end..whole.end).unwrap_or_default();
                    self.expression(expression.span(), format!("{before}{other}{behind}"));
                }
            }
            Expr::Lit(literal) => match &literal.lit {
                syn::Lit::Int(_) => {
                    let text = self.text_of(literal.span());
                    self.expression(literal.span(), format!("{text} + 1"));
                }
                syn::Lit::Float(_) => {
                    let text = self.text_of(literal.span());
                    self.expression(literal.span(), format!("{text} + 1.0"));
                }
                syn::Lit::Bool(value) => {
                    self.expression(literal.span(), (!value.value).to_string());
                }
                _ => {}
            },
            Expr::If(choice) => self.condition(&choice.cond),
            Expr::Match(choice) => {
                for (_, guard) in choice.arms.iter().filter_map(|arm| arm.guard.as_ref()) {
                    self.condition(guard);
                }
            }
            // The number of a repeated value is a constant.
            Expr::Repeat(repeat) => return self.visit_expr(&repeat.expr),
            Expr::Const(_) | Expr::Macro(_) => return,
            _ => {}
        }
        visit::visit_expr(self, expression);
    }

    fn visit_pat(&mut self, _: &'ast syn::Pat) {}

    fn visit_type(&mut self, _: &'ast Type) {}

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_generic_argument(&mut self, _: &'ast syn::GenericArgument) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, Kind)> {
        let all = in_file("x.rs", text).expect("Rust");
        all.into_iter().map(|mutant| (mutant.old, mutant.kind)).collect()
    }

    fn expression(old: &str, new: &str) -> (String, Kind) {
        (old.to_owned(), Kind::Expression(new.to_owned()))
    }

    #[test]
    fn signs_conditions_numbers_and_bodies() {
        let all = found("fn f(a: u32) -> u32 { if a < 3 { return a; } a * 2 }");
        for wanted in [
            expression("a < 3", "a <= 3"),
            expression("a < 3", "true"),
            expression("a * 2", "a + 2"),
            expression("2", "2 + 1"),
        ] {
            assert!(all.contains(&wanted), "{wanted:?} in {all:?}");
        }
        assert!(all.iter().any(|(_, kind)| *kind == Kind::Body("0".into())), "{all:?}");
        let all = found("fn f(v: &mut Vec<u8>) { v.clear(); let n = v.len().min(4); }");
        assert!(all.contains(&("v.clear();".into(), Kind::Statement)), "{all:?}");
        assert!(all.contains(&expression("v.len().min(4)", "v.len().max(4)")), "{all:?}");
    }

    #[test]
    fn modules_of_tests_in_files_of_their_own_are_known() {
        let text = "#[cfg(test)] mod tests; mod a; #[cfg(test)] mod b { fn f() {} }";
        assert_eq!(test_modules(text).expect("Rust"), ["tests"]);
    }

    #[test]
    fn tests_constants_and_patterns_have_none() {
        for text in [
            "#[cfg(test)] mod tests { fn f() -> bool { 1 < 2 } }",
            "const N: usize = 3 + 4; static M: u32 = 5;",
            "const fn f(a: u32) -> u32 { a + 1 }",
            "fn f(a: u32) { match a { 1 => {} _ => {} } }",
            "fn f() { let _: [u8; 3]; }",
        ] {
            assert_eq!(found(text), [], "{text}");
        }
    }
}
