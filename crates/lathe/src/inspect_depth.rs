//! What a trace says of depth: which tokens go deep, by what is known of them and of their text,
//! each number beside chance.

use std::path::PathBuf;

use report::{BarSeries, Bars, Page, Table};
use serde_json::{Map, Value, json};
use trace::Trace;
use trace::measures::{
    Controlled, DepthChange, DepthGroup, DepthLabel, DepthRows, DepthSaid, DepthToken, Shuffles,
    depth_change, depth_groups, depth_said, depth_tokens, depths, rank_correlation,
};

use crate::inspect_trace::{PARTS, cell, numbers, percent, table};
use crate::output;

/// Shuffles of what is said about the text: one in a hundred is the smallest p.
const SHUFFLES: Shuffles = Shuffles { count: 99, seed: 1 };
/// Groups of a label that are shown, those of the most tokens.
const MOST_GROUPS: usize = 24;

/// A number of a token, where it is known.
type Number = fn(&DepthToken) -> Option<f64>;
/// What depth is ranked beside.
const RANKED: [(&str, &str, Number); 4] = [
    ("next_loss", "loss of the next token", |row| row.loss.map(f64::from)),
    ("surprisal", "surprisal of the token", |row| row.surprisal.map(f64::from)),
    ("frequency", "frequency of the token", |row| Some(row.count as f64)),
    ("position", "position in the sequence", |row| Some(f64::from(row.position))),
];

/// What one label of tokens says of depth.
struct Said {
    label: DepthLabel,
    name: &'static str,
    said: DepthSaid,
    /// The largest groups by name, in the order of the labels; none for tokens, of which there are
    /// too many.
    groups: Vec<(String, DepthGroup)>,
}

/// All that a trace says of depth.
pub(crate) struct DepthSays {
    rows: DepthRows,
    by_position: Controlled,
    by_token: Controlled,
    said: Vec<Said>,
    correlations: Vec<(&'static str, &'static str, Controlled)>,
    changes: Vec<(PathBuf, DepthChange)>,
}

impl DepthSays {
    /// Whether another trace shares no token with it.
    pub(crate) fn met_nothing(&self) -> bool {
        self.changes.iter().any(|(_, change)| change.tokens == 0)
    }

    /// What `trace` says, also beside other traces of its text; `None` without a depth router.
    pub(crate) fn of(trace: &Trace, against: &[(PathBuf, Trace)], how: Shuffles) -> Option<Self> {
        let rows = depths(trace);
        if rows.rows.is_empty() {
            return None;
        }
        let longest = longest(&rows);
        let tokens = depth_tokens(trace);
        let mut said = Vec::new();
        for (label, name) in DepthLabel::ALL {
            let labels = label.of(&tokens);
            let Some(found) = depth_said(&tokens, &labels, SHUFFLES) else { continue };
            let groups = match label {
                DepthLabel::Token => Vec::new(),
                _ => shown(label, &tokens, &labels, trace),
            };
            said.push(Said { label, name, said: found, groups });
        }
        let ranked = RANKED.iter().filter_map(|(key, name, number)| {
            Some((*key, *name, rank_correlation(&tokens, number, SHUFFLES)?))
        });
        let correlations = ranked.collect();
        let mut changes = Vec::new();
        for (path, other) in against {
            let change = depth_change(&tokens, &depth_tokens(other), SHUFFLES);
            changes.push((path.clone(), change));
        }
        Some(Self {
            by_position: rows.explained(|row| row.position as usize * PARTS / longest, how),
            by_token: rows.explained(|row| row.token, how),
            said,
            correlations,
            changes,
            rows,
        })
    }

    /// The numbers for programs.
    pub(crate) fn json(&self) -> Value {
        let by_part = self.by_part();
        let mut labels = Map::new();
        for Said { name, said, groups, .. } in &self.said {
            let groups: Vec<Value> =
                groups.iter().map(|(name, group)| of_group(name, group)).collect();
            let entry = json!({
                "tokens": said.tokens, "labels": said.labels,
                "explained": numbers(&said.explained), "information": numbers(&said.information),
                "guessed": numbers(&said.guessed), "groups": groups,
            });
            labels.insert((*name).to_owned(), entry);
        }
        let correlations: Map<String, Value> = self
            .correlations
            .iter()
            .map(|(key, _, found)| ((*key).to_owned(), numbers(found)))
            .collect();
        let changes: Vec<Value> = self
            .changes
            .iter()
            .map(|(path, change)| {
                json!({
                    "against": path, "tokens": change.tokens, "unmatched": change.unmatched,
                    "same": (change.tokens > 0).then(|| numbers(&change.same)),
                    "rank_correlation": change.correlation.as_ref().map(numbers),
                })
            })
            .collect();
        json!({
            "rows_by_depth": self.rows.counts(),
            "mean_by_eighth_of_positions": by_part.iter().map(|(_, mean)| mean).collect::<Vec<_>>(),
            "explained_by_token": numbers(&self.by_token),
            "explained_by_position": numbers(&self.by_position),
            "entropy": self.said.first().map(|first| first.said.entropy),
            "by_label": labels, "rank_correlation": correlations, "changes": changes,
        })
    }

    /// Mean depth by eighth of the longest sequence.
    fn by_part(&self) -> Vec<(usize, f64)> {
        let longest = longest(&self.rows);
        let means = self.rows.means(|row| row.position as usize * PARTS / longest);
        means.into_iter().map(|(part, (mean, _))| (part, mean)).collect()
    }

    /// The numbers in tables; in brackets stands what chance would say.
    pub(crate) fn tables(&self) -> Vec<Table> {
        let mut all = vec![self.counts(), self.explained()];
        if !self.said.is_empty() {
            all.push(self.label_table());
        }
        if !self.correlations.is_empty() {
            all.push(self.rank_table());
        }
        if !self.changes.is_empty() {
            all.push(self.change_table());
        }
        all.extend(self.said.iter().filter(|one| !one.groups.is_empty()).map(group_table));
        all
    }

    fn counts(&self) -> Table {
        let total = self.rows.rows.len().max(1) as f64;
        let mut rows = Vec::new();
        for (number, &count) in self.rows.counts().iter().enumerate() {
            let share = format!("{:.1}", 100.0 * count as f64 / total);
            rows.push(vec![output::recursions(number), count.to_string(), share]);
        }
        table(&["", "tokens", "%"], rows, "depth by the depth router")
    }

    fn explained(&self) -> Table {
        let row = vec![percent(&self.by_token), percent(&self.by_position)];
        table(
            &["by the token", "by its eighth of the sequence"],
            vec![row],
            "share of the variance of depth that is explained; in brackets after a shuffle",
        )
    }

    fn label_table(&self) -> Table {
        let mut rows = Vec::new();
        for Said { name, said, .. } in &self.said {
            rows.push(vec![
                (*name).to_owned(),
                said.tokens.to_string(),
                said.labels.to_string(),
                percent(&said.explained),
                format!("{:.2}", said.explained.p),
                cell(&said.information, 4),
                format!("{:.2}", said.information.p),
                percent(&said.guessed),
            ]);
        }
        let entropy = self.said.first().map_or(0.0, |first| first.said.entropy);
        let caption = format!(
            "what says how deep a token goes; in brackets with labels dealt out anew, p the share \
             of {} such deals and the true one that reach the number; depth holds {entropy:.4} \
             nats",
            SHUFFLES.count
        );
        let columns = [
            "",
            "tokens",
            "labels",
            "variance of depth explained",
            "p",
            "information, nats",
            "p",
            "depths guessed by it",
        ];
        table(&columns, rows, &caption)
    }

    fn rank_table(&self) -> Table {
        let mut rows = Vec::new();
        for (_, name, found) in &self.correlations {
            rows.push(vec![
                (*name).to_owned(),
                format!("{:+.3}", found.value),
                format!("{:.3}", found.by_chance),
                format!("{:.2}", found.p),
            ]);
        }
        let columns = ["depth and", "rank correlation", "its size by chance", "p"];
        table(&columns, rows, "tokens that go deep, by numbers (Spearman)")
    }

    fn change_table(&self) -> Table {
        let mut rows = Vec::new();
        for (path, change) in &self.changes {
            let known = change.tokens > 0;
            let ranks = change.correlation.as_ref().map(|found| format!("{:+.3}", found.value));
            rows.push(vec![
                path.display().to_string(),
                change.tokens.to_string(),
                change.unmatched.to_string(),
                if known { percent(&change.same) } else { "-".to_owned() },
                ranks.unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        let columns =
            ["beside", "tokens of both", "of one alone", "the same depth", "rank correlation"];
        table(&columns, rows, "depths beside other traces; in brackets beside other tokens of them")
    }

    /// The pictures of a page.
    pub(crate) fn draw(&self, page: &mut Page) {
        let total = self.rows.rows.len().max(1) as f64;
        let counts = self.rows.counts();
        let by_part = self.by_part();
        page.section("Depth");
        page.bars(Bars {
            title: "tokens by depth".into(),
            x_label: "recursions".into(),
            y_label: "tokens".into(),
            labels: (0..counts.len()).map(|number| number.to_string()).collect(),
            series: one(counts.iter().map(|&count| count as f64 / total).collect()),
            percent: true,
        });
        page.bars(Bars {
            title: "mean depth by place in the sequence".into(),
            x_label: "eighth of the sequence".into(),
            y_label: "recursions".into(),
            labels: by_part.iter().map(|(part, _)| (part + 1).to_string()).collect(),
            series: one(by_part.iter().map(|(_, mean)| *mean).collect()),
            percent: false,
        });
        let others = self.said.iter().filter(|said| said.label != DepthLabel::Position);
        for Said { name, groups, .. } in others.filter(|said| !said.groups.is_empty()) {
            page.bars(Bars {
                title: format!("mean depth by {name}"),
                x_label: (*name).to_owned(),
                y_label: "recursions".into(),
                labels: groups.iter().map(|(name, _)| name.clone()).collect(),
                series: one(groups.iter().map(|(_, group)| group.mean).collect()),
                percent: false,
            });
        }
        page.paragraph(
            "Parts of speech are those of English: closed classes from a list, open ones by their \
             endings. A token is of the word of its first letter; words that the edge of a text \
             may cut are left out. Frequency is that in the trace. Surprisal is what the token \
             cost itself, the loss what the one behind it did; eighths are of all tokens, from the \
             cheapest. Every number stands beside what it is when labels are dealt out anew: it \
             says something only as far as it is beyond that.",
        );
    }
}

fn one(values: Vec<f64>) -> Vec<BarSeries> {
    vec![BarSeries { name: String::new(), values }]
}

fn longest(rows: &DepthRows) -> usize {
    rows.rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(1)
}

/// The groups of the most tokens by name, in the order of their labels.
fn shown(
    label: DepthLabel,
    tokens: &[DepthToken],
    labels: &[Option<u32>],
    trace: &Trace,
) -> Vec<(String, DepthGroup)> {
    let mut groups: Vec<(u32, DepthGroup)> = depth_groups(tokens, labels).into_iter().collect();
    groups.sort_by_key(|(label, group)| (std::cmp::Reverse(group.tokens), *label));
    groups.truncate(MOST_GROUPS);
    groups.sort_by_key(|(label, _)| *label);
    groups.into_iter().map(|(own, group)| (label.name(own, trace), group)).collect()
}

fn of_group(name: &str, group: &DepthGroup) -> Value {
    json!({
        "label": name, "tokens": group.tokens, "mean_depth": group.mean,
        "deepest": group.deepest, "next_loss": group.loss,
    })
}

fn group_table(of: &Said) -> Table {
    let mut rows = Vec::new();
    for (name, group) in &of.groups {
        rows.push(vec![
            name.clone(),
            group.tokens.to_string(),
            format!("{:.3}", group.mean),
            format!("{:.1}", 100.0 * group.deepest),
            group.loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.3}")),
        ]);
    }
    let columns = ["", "tokens", "mean depth", "% of full depth", "nats of the next token"];
    table(&columns, rows, &format!("depth by {}", of.name))
}
