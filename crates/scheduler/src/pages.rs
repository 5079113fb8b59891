//! Pages of keys and values: which unit page holds which token of which layer, who shares it, and
//! when it is copied.

use std::ops::Range;

/// Tokens that a unit page holds.
pub const PAGE: usize = 16;

/// Layers of each tier. Tier 0 stands for the layers outside the recursions, tier `1 + r` for those
/// of recursion `r`; a tier without layers (recursions that share the first one's keys and values)
/// counts tokens and owns no page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Unit pages that 16 tokens of each tier take.
    pub layers: Vec<usize>,
    /// Whether a row that takes the first recursion leaves a token in the tier of every recursion,
    /// however deep it goes (keys and values of the first recursion stand in for those it does not
    /// make).
    pub every_row: bool,
    /// Whether keys and values depend on the seed of a request, as under a router that draws. Then
    /// only requests of the same seed share a prefix.
    pub by_seed: bool,
}

impl KvShape {
    /// Tiers in which a row of this depth leaves a token. Depths beyond the last tier are those of
    /// layouts that run several recursions in one.
    pub fn tiers_of(&self, depth: u32) -> usize {
        let all = self.layers.len();
        if self.every_row && depth > 0 { all } else { all.min(1 + depth as usize) }
    }

    /// Unit pages of one view alone if all of `tokens` tokens go through every tier.
    pub fn pages_for(&self, tokens: usize) -> usize {
        self.layers
            .iter()
            .fold(0usize, |sum, &l| sum.saturating_add(l.saturating_mul(tokens.div_ceil(PAGE))))
    }
}

/// The view that one sequence has of the pool. It is neither copied nor cloned: who has it, holds
/// its pages until [`Pages::release`].
#[derive(Debug, PartialEq, Eq)]
pub struct TableId(u32);

/// The first `tokens` slots of one page are to be copied into another, before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// Page that others go on reading.
    pub from_page: u32,
    /// The page that is written from now on.
    pub to_page: u32,
    /// How many slots, from the first.
    pub tokens: usize,
}

/// The pool has no page left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "tier {tier} needs {needed} fresh unit pages, {free} are free: release, evict or preempt first"
)]
pub struct Full {
    /// The tier that wanted to grow.
    pub tier: usize,
    /// Unit pages that it wanted.
    pub needed: usize,
    /// Unit pages that nobody holds.
    pub free: usize,
}

/// The books do not balance: a mistake in this room, or a table that was leaked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "page accounting: {what} is {found}, recounted {expected}; \
     report it with the steps that led here"
)]
pub struct Imbalance {
    /// The number that is wrong.
    pub what: &'static str,
    /// Its value in the books.
    pub found: usize,
    /// Its value when counted again.
    pub expected: usize,
}

/// A stretch of a view that outlives it: the tokens from `from` to `to` of each tier, with
/// references to their pages. [`Pages::drop_shared`] gives them back.
#[derive(Debug, PartialEq, Eq)]
pub struct Shared {
    pub(crate) from: Vec<usize>,
    pub(crate) to: Vec<usize>,
    /// By tier and layer, the pages from index `from / PAGE` on.
    pages: Vec<Vec<Vec<u32>>>,
}

#[derive(Debug, Default)]
struct Table {
    counts: Vec<usize>,
    /// By tier and layer.
    lists: Vec<Vec<Vec<u32>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// Views that hold it.
    tables: u32,
    /// [`Shared`] stretches that hold it.
    shared: u32,
    tier: u32,
    /// Slots that somebody has written, from the front.
    filled: u32,
}

impl Page {
    fn holders(&self) -> u32 {
        self.tables + self.shared
    }
}

/// The pool: `free + used == pages` at any time, where `used` counts each page once however many
/// views share it.
#[derive(Debug)]
pub struct Pages {
    shape: KvShape,
    pages: Vec<Page>,
    free: Vec<u32>,
    tables: Vec<Option<Table>>,
    vacant: Vec<u32>,
    used: Vec<usize>,
    cached: usize,
    /// Most pages that views held at a time.
    most_held: usize,
}

impl Pages {
    /// A pool of `pages` unit pages, numbered from 0, all free.
    pub fn new(shape: KvShape, pages: usize) -> Self {
        let count = u32::try_from(pages).unwrap_or(u32::MAX).min(u32::MAX / PAGE as u32);
        let used = vec![0; shape.layers.len()];
        Self {
            shape,
            pages: vec![Page::default(); count as usize],
            free: (0..count).rev().collect(),
            tables: Vec::new(),
            vacant: Vec::new(),
            used,
            cached: 0,
            most_held: 0,
        }
    }

    /// Layers of each tier.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Unit pages in all.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Unit pages that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Unit pages held by anybody, by tier.
    pub fn used_by_tier(&self) -> &[usize] {
        &self.used
    }

    /// Unit pages held by [`Shared`] stretches only.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Most unit pages that views held at a time, each page counted once. What a sequence gives
    /// back in the tick that took it is in it, and in no number that is read between ticks.
    pub fn most_held(&self) -> usize {
        self.most_held
    }

    /// A view of no token yet.
    pub fn table(&mut self) -> TableId {
        let table = Table {
            counts: vec![0; self.shape.layers.len()],
            lists: self.shape.layers.iter().map(|&l| vec![Vec::new(); l]).collect(),
        };
        self.keep(table)
    }

    fn keep(&mut self, table: Table) -> TableId {
        match self.vacant.pop() {
            Some(place) => {
                self.tables[place as usize] = Some(table);
                TableId(place)
            }
            None => {
                self.tables.push(Some(table));
                TableId(self.tables.len() as u32 - 1)
            }
        }
    }

    fn get(&self, table: &TableId) -> &Table {
        self.tables[table.0 as usize].as_ref().expect("a TableId exists only while its table does")
    }

    /// Tokens of `tier` that the view sees.
    pub fn count(&self, table: &TableId, tier: usize) -> usize {
        self.get(table).counts[tier]
    }

    /// Tokens of each tier that the view sees.
    pub fn counts(&self, table: &TableId) -> &[usize] {
        &self.get(table).counts
    }

    /// Unit pages in the view's lists, shared ones too.
    pub fn held(&self, table: &TableId) -> usize {
        self.get(table).lists.iter().flatten().map(Vec::len).sum()
    }

    /// Pages of one layer in order: token `i` of the tier lies in page `list[i / PAGE]`, slot `i %
    /// PAGE`.
    pub fn list(&self, table: &TableId, tier: usize, layer: usize) -> &[u32] {
        &self.get(table).lists[tier][layer]
    }

    /// `page * PAGE + slot` of the `index`-th token of the tier.
    ///
    /// # Panics
    /// If `index` is not below [`Pages::count`] rounded up to whole pages.
    pub fn place(&self, table: &TableId, tier: usize, layer: usize, index: usize) -> u32 {
        self.list(table, tier, layer)[index / PAGE] * PAGE as u32 + (index % PAGE) as u32
    }

    /// Fresh unit pages that `n` more tokens of `tier` take at most, copies of shared pages
    /// included, whatever the other holders of these pages append before.
    pub fn needed(&self, table: &TableId, tier: usize, n: usize) -> usize {
        self.fresh(table, tier, n, |page, _| page.holders() > 1)
    }

    fn fresh(
        &self,
        table: &TableId,
        tier: usize,
        n: usize,
        copied: impl Fn(&Page, usize) -> bool,
    ) -> usize {
        let table = self.get(table);
        let count = table.counts[tier];
        let slot = count % PAGE;
        if n == 0 {
            return 0;
        }
        let whole = (count + n).div_ceil(PAGE) - count.div_ceil(PAGE);
        let tail =
            |list: &Vec<u32>| slot > 0 && copied(&self.pages[list[count / PAGE] as usize], slot);
        table.lists[tier].iter().map(|list| whole + usize::from(tail(list))).sum()
    }

    /// Makes room for `n` more tokens in all layers of `tier` and counts them as there. The copies
    /// must be carried out in order, before anything is written and before the next call that
    /// changes the pool.
    ///
    /// # Errors
    /// [`Full`] with nothing changed, if the pages do not suffice.
    pub fn append(
        &mut self,
        table: &TableId,
        tier: usize,
        n: usize,
    ) -> Result<Vec<PageCopy>, Full> {
        let needed = self.fresh(table, tier, n, must_copy);
        if needed > self.free.len() {
            return Err(Full { tier, needed, free: self.free.len() });
        }
        let mut copies = Vec::new();
        let Some(mut owned) = self.tables[table.0 as usize].take() else { return Ok(copies) };
        let count = owned.counts[tier];
        for list in &mut owned.lists[tier] {
            self.extend(list, tier, count, n, &mut copies);
        }
        owned.counts[tier] += n;
        self.tables[table.0 as usize] = Some(owned);
        Ok(copies)
    }

    fn extend(
        &mut self,
        list: &mut Vec<u32>,
        tier: usize,
        count: usize,
        n: usize,
        copies: &mut Vec<PageCopy>,
    ) {
        let mut at = count;
        while at < count + n {
            let slot = at % PAGE;
            if slot == 0 {
                list.push(self.allocate(tier));
            } else if must_copy(&self.pages[list[at / PAGE] as usize], slot) {
                let (from_page, to_page) = (list[at / PAGE], self.allocate(tier));
                copies.push(PageCopy { from_page, to_page, tokens: slot });
                self.drop_table(from_page);
                list[at / PAGE] = to_page;
            }
            let end = (at - slot + PAGE).min(count + n);
            self.pages[list[at / PAGE] as usize].filled = (slot + end - at) as u32;
            at = end;
        }
    }

    fn allocate(&mut self, tier: usize) -> u32 {
        let page = self.free.pop().expect("append counted the pages it takes");
        self.pages[page as usize] = Page { tables: 1, shared: 0, tier: tier as u32, filled: 0 };
        self.used[tier] += 1;
        self.note_held();
        page
    }

    fn note_held(&mut self) {
        let held = self.used.iter().sum::<usize>() - self.cached;
        self.most_held = self.most_held.max(held);
    }

    fn hold_table(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        self.cached -= usize::from(state.tables == 0);
        state.tables += 1;
        self.note_held();
    }

    fn drop_table(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        state.tables -= 1;
        match (state.tables, state.shared) {
            (0, 0) => self.give_back(page),
            (0, _) => self.cached += 1,
            _ => {}
        }
    }

    fn give_back(&mut self, page: u32) {
        self.used[self.pages[page as usize].tier as usize] -= 1;
        self.free.push(page);
    }

    /// Ends a view; pages that nobody else holds become free.
    pub fn release(&mut self, table: TableId) {
        let Some(owned) = self.tables[table.0 as usize].take() else { return };
        self.vacant.push(table.0);
        for page in owned.lists.into_iter().flatten().flatten() {
            self.drop_table(page);
        }
    }

    /// All that the view sees now, kept for others.
    pub fn snapshot(&mut self, table: &TableId) -> Shared {
        let (from, to) = (vec![0; self.shape.layers.len()], self.counts(table).to_vec());
        self.share(table, from, to)
    }

    /// The tokens from `from` to `to` of each tier, kept for others. `to` must not exceed what the
    /// view sees.
    pub(crate) fn share(&mut self, table: &TableId, from: Vec<usize>, to: Vec<usize>) -> Shared {
        let own = self.get(table);
        let by_tier = own.lists.iter().enumerate();
        let pages: Vec<Vec<Vec<u32>>> = by_tier
            .map(|(tier, lists)| {
                let tokens = from[tier]..to[tier];
                lists.iter().map(|list| pages_of(list, tokens.clone())).collect()
            })
            .collect();
        for &page in pages.iter().flatten().flatten() {
            self.pages[page as usize].shared += 1;
        }
        Shared { from, to, pages }
    }

    /// A new view that sees what [`Pages::snapshot`] kept.
    pub fn resume(&mut self, shared: &Shared) -> TableId {
        self.resume_chain(&[shared])
    }

    /// A new view of several stretches, each beginning where the one before ends.
    pub(crate) fn resume_chain(&mut self, chain: &[&Shared]) -> TableId {
        let mut table = Table {
            counts: vec![0; self.shape.layers.len()],
            lists: self.shape.layers.iter().map(|&l| vec![Vec::new(); l]).collect(),
        };
        for shared in chain {
            for (tier, lists) in table.lists.iter_mut().enumerate() {
                let empty = shared.from[tier] == shared.to[tier];
                for (list, more) in lists.iter_mut().zip(&shared.pages[tier]).filter(|_| !empty) {
                    list.truncate(shared.from[tier] / PAGE);
                    list.extend_from_slice(more);
                }
            }
            table.counts.copy_from_slice(&shared.to);
        }
        for &page in table.lists.iter().flatten().flatten() {
            self.hold_table(page);
        }
        self.keep(table)
    }

    /// Gives back what [`Pages::snapshot`] kept.
    pub fn drop_shared(&mut self, shared: Shared) {
        for page in shared.pages.into_iter().flatten().flatten() {
            let state = &mut self.pages[page as usize];
            state.shared -= 1;
            if state.holders() == 0 {
                self.cached -= 1;
                self.give_back(page);
            }
        }
    }

    /// Counts everything again; `shared` are all stretches that are still kept.
    ///
    /// # Errors
    /// The first number that is wrong.
    pub fn check<'a>(&self, shared: impl IntoIterator<Item = &'a Shared>) -> Result<(), Imbalance> {
        let mut tables = vec![0usize; self.pages.len()];
        let mut stretches = vec![0usize; self.pages.len()];
        let mut owner = vec![usize::MAX; self.pages.len()];
        for table in self.tables.iter().flatten() {
            for (tier, lists) in table.lists.iter().enumerate() {
                for list in lists {
                    same("pages of a list", list.len(), table.counts[tier].div_ceil(PAGE))?;
                    list.iter()
                        .for_each(|&p| (tables[p as usize] += 1, owner[p as usize] = tier).0);
                }
            }
        }
        for (tier, lists) in shared.into_iter().flat_map(|s| s.pages.iter().enumerate()) {
            lists
                .iter()
                .flatten()
                .for_each(|&p| (stretches[p as usize] += 1, owner[p as usize] = tier).0);
        }
        let mut used = vec![0; self.used.len()];
        let (mut cached, mut free) = (0, 0);
        for (page, state) in self.pages.iter().enumerate() {
            if tables[page] + stretches[page] == 0 {
                free += 1;
                continue;
            }
            same("views of a page", state.tables as usize, tables[page])?;
            same("stretches of a page", state.shared as usize, stretches[page])?;
            same("tier of a page", state.tier as usize, owner[page])?;
            used[owner[page]] += 1;
            cached += usize::from(tables[page] == 0);
        }
        for (tier, &expected) in used.iter().enumerate() {
            same("used pages of a tier", self.used[tier], expected)?;
        }
        same("cached pages", self.cached, cached)?;
        same("free pages", self.free.len(), free)?;
        let mut listed = vec![false; self.pages.len()];
        self.free.iter().for_each(|&p| listed[p as usize] = true);
        same("distinct free pages", listed.iter().filter(|&&l| l).count(), free)
    }
}

/// The pages of a list that hold the tokens of a range; none for no tokens.
fn pages_of(list: &[u32], tokens: Range<usize>) -> Vec<u32> {
    if tokens.is_empty() {
        return Vec::new();
    }
    list[tokens.start / PAGE..tokens.end.div_ceil(PAGE)].to_vec()
}

/// Whether slot `slot` of a page cannot be written in place: somebody else sees the page, and the
/// slot was written.
fn must_copy(page: &Page, slot: usize) -> bool {
    page.holders() > 1 && page.filled as usize != slot
}

fn same(what: &'static str, found: usize, expected: usize) -> Result<(), Imbalance> {
    if found == expected { Ok(()) } else { Err(Imbalance { what, found, expected }) }
}
