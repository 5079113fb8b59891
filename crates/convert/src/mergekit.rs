//! The file of `mergekit-moe`: which dense models become the experts of one, and by which prompts
//! each is chosen. Keys and modes that mean nothing here are refused by name.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::ConvertError;
use crate::error::refused_in;
use crate::yaml::{self, Node, Value};

/// The longest such file.
const LONGEST: u64 = 1 << 20;

/// What a file of `mergekit-moe` asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchPlan {
    /// The file that asks for it.
    pub path: PathBuf,
    /// The model that everything but the MLPs comes from.
    pub base: PathBuf,
    /// The models whose MLPs become experts, in order.
    pub experts: Vec<Branch>,
    /// The one whose MLP every row takes beside them.
    pub shared: Option<Branch>,
    /// What rows of routers are made of.
    pub gates: GateMode,
    /// Experts that a row takes.
    pub top_k: usize,
    /// What numbers are rounded to.
    pub dtype: BranchDtype,
}

impl BranchPlan {
    /// Whether a sigmoid of the row weighs the shared expert: where it has prompts.
    pub fn has_shared_gate(&self) -> bool {
        self.shared.as_ref().is_some_and(|branch| !branch.positive.is_empty())
    }
}

/// A model whose MLPs become an expert of each layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch {
    /// The path of its checkpoint.
    pub source: PathBuf,
    /// Texts for which it is to be chosen.
    pub positive: Vec<String>,
    /// Texts for which it is not.
    pub negative: Vec<String>,
    /// What multiplies what its MLPs write.
    pub scale: f64,
}

/// What rows of routers are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GateMode {
    /// The stream ahead of each layer behind the last token of a prompt.
    Hidden,
    /// The sum of the embeddings of a prompt's tokens, the same in every layer.
    CheapEmbed,
    /// Dice, for models that are trained afterwards.
    Random,
}

/// What numbers are rounded to; they are kept in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchDtype {
    /// 32 bits: nothing is rounded.
    Float32,
    /// The half precision of IEEE 754.
    Float16,
    /// The upper half of f32.
    Bfloat16,
}

/// Whether a path is that of such a file, by its ending.
pub fn is_branch_plan(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "yml" || end == "yaml")
}

impl BranchPlan {
    /// Reads the file at `path`. Models are paths, as they stand there.
    ///
    /// # Errors
    /// A file that cannot be read, keys and values that are not known, plans that are impossible.
    pub fn load(path: &Path) -> Result<Self, ConvertError> {
        let text = match files::read_text(path, LONGEST) {
            Ok(text) => text,
            Err(error) => {
                let next = "name a file of mergekit-moe";
                return refused_in(path, "file", "text in YAML", error, next);
            }
        };
        let file = PlanFile { path };
        let root = match yaml::read(&text) {
            Ok(root) => root,
            Err(found) => {
                let next = "write plain keys, lists and texts";
                return refused_in(path, "YAML", "a plain map of keys", found, next);
            }
        };
        file.plan(&root)
    }
}

/// The file at hand, for errors.
struct PlanFile<'a> {
    path: &'a Path,
}

const TOP: [&str; 7] = [
    "base_model",
    "gate_mode",
    "dtype",
    "experts_per_token",
    "experts",
    "shared_experts",
    "architecture",
];
const EXPERT: [&str; 4] =
    ["source_model", "positive_prompts", "negative_prompts", "residual_scale"];

type Entries<'a> = &'a [(String, Node)];

impl PlanFile<'_> {
    fn refuse<T>(
        &self,
        field: &str,
        expected: impl Into<String>,
        found: impl ToString,
        next: &'static str,
    ) -> Result<T, ConvertError> {
        refused_in(self.path, field, expected, found, next)
    }

    fn plan(&self, root: &Node) -> Result<BranchPlan, ConvertError> {
        let map = self.map("YAML", root, &TOP)?;
        let base = self.model("base_model", entry(map, "base_model"))?;
        let gates = self.gates(entry(map, "gate_mode"))?;
        let experts = self.branches("experts", entry(map, "experts"))?;
        let mut shared = self.branches("shared_experts", entry(map, "shared_experts"))?;
        let (count, top_k) = (experts.len(), self.top_k(entry(map, "experts_per_token"))?);
        if experts.is_empty() {
            let expected = "at least one model, as \"- source_model: PATH\"";
            return self.refuse("experts", expected, "none", "list the models");
        }
        if top_k < 1 || top_k > count {
            let expected = format!("1 to {count}, the experts of the list");
            let next = "take so many, or list more experts";
            return self.refuse("experts_per_token", expected, top_k, next);
        }
        if shared.len() > 1 {
            let found = format!("{} models", shared.len());
            return self.refuse("shared_experts", "one model", found, "leave the others out");
        }
        let plan = BranchPlan {
            path: self.path.to_owned(),
            base,
            shared: shared.pop(),
            experts,
            gates,
            top_k,
            dtype: self.dtype(entry(map, "dtype"))?,
        };
        self.check_architecture(entry(map, "architecture"), &plan)?;
        self.check_prompts(&plan)?;
        Ok(plan)
    }

    /// The entries of a map whose keys are all `known`.
    fn map<'n>(
        &self,
        field: &str,
        node: &'n Node,
        known: &[&str],
    ) -> Result<Entries<'n>, ConvertError> {
        let Value::Map(map) = &node.value else {
            return self.refuse(field, "a map of keys", node.describe(), "write KEY: VALUE");
        };
        match map.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, node)) => {
                let expected = format!("one of {}", known.join(", "));
                let found = format!("{key:?} in line {}", node.line);
                self.refuse(&format!("{field}: key"), expected, found, "leave it out")
            }
            None => Ok(map),
        }
    }

    fn text<'n>(&self, field: &str, node: &'n Node) -> Result<&'n str, ConvertError> {
        match &node.value {
            Value::Text { text, .. } if !text.is_empty() => Ok(text),
            _ => self.refuse(field, "a text", node.describe(), "write one text"),
        }
    }

    /// The path of a model.
    fn model(&self, field: &str, node: Option<&Node>) -> Result<PathBuf, ConvertError> {
        let Some(node) = node else {
            let expected = "the path of a checkpoint";
            return self.refuse(field, expected, "none", "name a model");
        };
        let text = self.text(field, node)?;
        let path = PathBuf::from(text);
        if path.exists() {
            return Ok(path);
        }
        let expected = "a checkpoint, Hugging Face folder or GGUF file on this disk";
        let found = format!("{} where nothing is", node.describe());
        match text.split_once('+') {
            Some(_) => {
                let next = "merge the adapter behind the + into its model first, and name that";
                self.refuse(field, expected, found, next)
            }
            None => {
                let next = "download it (hf download NAME --local-dir NAME), or mend the path";
                self.refuse(field, expected, found, next)
            }
        }
    }

    fn gates(&self, node: Option<&Node>) -> Result<GateMode, ConvertError> {
        let Some(node) = node else { return Ok(GateMode::Hidden) };
        match self.text("gate_mode", node)? {
            "hidden" => Ok(GateMode::Hidden),
            "cheap_embed" => Ok(GateMode::CheapEmbed),
            "random" => Ok(GateMode::Random),
            _ => {
                let expected = "hidden, cheap_embed or random";
                self.refuse("gate_mode", expected, node.describe(), "choose one of these")
            }
        }
    }

    fn dtype(&self, node: Option<&Node>) -> Result<BranchDtype, ConvertError> {
        let Some(node) = node.filter(|node| !node.is_null()) else {
            return Ok(BranchDtype::Float32);
        };
        match self.text("dtype", node)? {
            "float32" => Ok(BranchDtype::Float32),
            "float16" => Ok(BranchDtype::Float16),
            "bfloat16" => Ok(BranchDtype::Bfloat16),
            _ => {
                let expected = "float32, float16 or bfloat16";
                self.refuse("dtype", expected, node.describe(), "choose one of these")
            }
        }
    }

    fn top_k(&self, node: Option<&Node>) -> Result<usize, ConvertError> {
        let Some(node) = node else { return Ok(2) };
        let text = self.text("experts_per_token", node)?;
        match text.parse() {
            Ok(number) => Ok(number),
            Err(_) => {
                let expected = "a number of experts";
                let next = "write a whole number";
                self.refuse("experts_per_token", expected, node.describe(), next)
            }
        }
    }

    fn branches(&self, field: &str, node: Option<&Node>) -> Result<Vec<Branch>, ConvertError> {
        let Some(node) = node.filter(|node| !node.is_null()) else { return Ok(Vec::new()) };
        let Value::List(list) = &node.value else {
            let next = "write \"- source_model: PATH\" for each";
            return self.refuse(field, "a list of models", node.describe(), next);
        };
        let each = list.iter().enumerate();
        each.map(|(i, node)| self.branch(&format!("{field}[{i}]"), node)).collect()
    }

    fn branch(&self, field: &str, node: &Node) -> Result<Branch, ConvertError> {
        let map = self.map(field, node, &EXPERT)?;
        let source = self.model(&format!("{field}.source_model"), entry(map, "source_model"))?;
        let positive = self.prompts(field, map, "positive_prompts")?;
        let negative = self.prompts(field, map, "negative_prompts")?;
        let (name, node) = (format!("{field}.residual_scale"), entry(map, "residual_scale"));
        let Some(node) = node.filter(|node| !node.is_null()) else {
            return Ok(Branch { source, positive, negative, scale: 1.0 });
        };
        match self.text(&name, node)?.parse::<f64>() {
            Ok(scale) if scale.is_finite() => Ok(Branch { source, positive, negative, scale }),
            _ => {
                let expected = "a number that multiplies what the expert writes";
                self.refuse(&name, expected, node.describe(), "write a number")
            }
        }
    }

    /// The texts under a key of an expert.
    fn prompts(
        &self,
        field: &str,
        map: Entries<'_>,
        key: &str,
    ) -> Result<Vec<String>, ConvertError> {
        let name = format!("{field}.{key}");
        let node = entry(map, key).filter(|node| !node.is_null());
        let Some(node) = node else { return Ok(Vec::new()) };
        let Value::List(list) = &node.value else {
            let next = "write \"- TEXT\" for each";
            return self.refuse(&name, "a list of texts", node.describe(), next);
        };
        list.iter().map(|node| Ok(self.text(&name, node)?.to_owned())).collect()
    }

    /// The architecture of the other program's result says whether there is a shared expert, and
    /// whether it is weighed.
    fn check_architecture(
        &self,
        node: Option<&Node>,
        plan: &BranchPlan,
    ) -> Result<(), ConvertError> {
        let Some(node) = node.filter(|node| !node.is_null()) else { return Ok(()) };
        let has = match (&plan.shared, plan.has_shared_gate()) {
            (None, _) => "no shared expert",
            (Some(_), false) => "a shared expert without prompts",
            (Some(_), true) => "a shared expert with prompts",
        };
        let allowed: &[&str] = match self.text("architecture", node)? {
            "mixtral" => &["no shared expert"],
            "deepseek" => &["no shared expert", "a shared expert without prompts"],
            "qwen" => match plan.gates {
                GateMode::Random => {
                    &["a shared expert with prompts", "a shared expert without prompts"]
                }
                _ => &["a shared expert with prompts"],
            },
            _ => {
                let expected = "mixtral, deepseek or qwen";
                return self.refuse("architecture", expected, node.describe(), "choose one");
            }
        };
        if allowed.contains(&has) {
            return Ok(());
        }
        let expected = format!("{} for {}", allowed.join(" or "), node.describe());
        self.refuse("shared_experts", expected, has, "leave the architecture out")
    }

    /// Prompts are there where rows of routers are made of them, and tell experts apart.
    fn check_prompts(&self, plan: &BranchPlan) -> Result<(), ConvertError> {
        if plan.gates == GateMode::Random {
            // As there, dice read no prompts.
            return Ok(());
        }
        for (i, branch) in plan.experts.iter().enumerate() {
            if branch.positive.is_empty() {
                let field = format!("experts[{i}].positive_prompts");
                let next = "write texts for which it is to be chosen, or gate_mode: random";
                return self.refuse(&field, "at least one text", "none", next);
            }
        }
        if let Some(Branch { positive, negative, .. }) = &plan.shared
            && positive.is_empty()
            && !negative.is_empty()
        {
            let expected = "at least one text beside negative_prompts, which weigh it with those";
            let next = "write some, or leave the negative ones out";
            return self.refuse("shared_experts[0].positive_prompts", expected, "none", next);
        }
        let first = plan.experts.first().map(|branch| (&branch.positive, &branch.negative));
        let mut others = plan.experts.iter().map(|branch| (&branch.positive, &branch.negative));
        if plan.experts.len() > 1 && others.all(|prompts| Some(prompts) == first) {
            let expected = "prompts that tell experts apart";
            let next = "write other texts for each, or gate_mode: random";
            return self.refuse("experts: positive_prompts", expected, "the same for all", next);
        }
        Ok(())
    }
}

fn entry<'n>(map: Entries<'n>, key: &str) -> Option<&'n Node> {
    map.iter().find(|(known, _)| known == key).map(|(_, node)| node)
}
