//! Prefix cache: blocks of prompt tokens that were computed before, as a tree whose nodes keep
//! their stretch of pages.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::{PAGE, Pages, Shared};

/// What changes the keys and values of a row besides the ids up to it. Texts of different classes
/// never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PrefixClass {
    /// Most recursions that a row may have.
    pub(crate) cap: u32,
    /// Fewest recursions that a row must have.
    pub(crate) min_depth: u32,
    /// Bits of what is added to the router's thresholds.
    pub(crate) threshold: u32,
    /// The request's seed, where rows depend on it.
    pub(crate) seed: Option<u64>,
    /// The adapter that its keys and values are of.
    pub(crate) adapter: u32,
}

/// A place in the tree: a text of whole blocks that begins at the root of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    /// The empty text of a class.
    Root(PrefixClass),
    /// A text that ends with this entry's block.
    Block(u64),
}

#[derive(Debug)]
struct Entry {
    parent: Node,
    block: [u32; PAGE],
    /// Blocks from the root, this one included.
    depth: usize,
    used: u64,
    shared: Shared,
}

/// Blocks by parent and token ids. A key holds the ids themselves and the parent's number, which is
/// given once and never again: two texts share a node only if they are equal, so no collision can
/// serve a wrong one.
#[derive(Debug, Default)]
pub(crate) struct Prefix {
    entries: BTreeMap<u64, Entry>,
    children: BTreeMap<(Node, [u32; PAGE]), u64>,
    /// Least recently used first, of equal ones the deepest. Whoever uses an entry uses its
    /// ancestors too, so the first is always a leaf.
    order: BTreeSet<(u64, Reverse<usize>, u64)>,
    clock: u64,
    numbers: u64,
}

impl Prefix {
    /// The longest known beginning of `ids`, in tokens. Never all of `ids`: the last token at least
    /// is left to compute.
    pub(crate) fn find(
        &mut self,
        class: PrefixClass,
        ids: impl IntoIterator<Item = u32>,
    ) -> (usize, Node) {
        let (mut node, mut blocks) = (Node::Root(class), 0);
        let mut ids = ids.into_iter().peekable();
        let mut block = [0; PAGE];
        'blocks: loop {
            for slot in &mut block {
                let Some(id) = ids.next() else { break 'blocks };
                *slot = id;
            }
            let Some(child) = self.child(node, &block).filter(|_| ids.peek().is_some()) else {
                break;
            };
            (node, blocks) = (child, blocks + 1);
        }
        self.touch(node);
        (blocks * PAGE, node)
    }

    /// The node that continues `node` with `block`.
    pub(crate) fn child(&self, node: Node, block: &[u32; PAGE]) -> Option<Node> {
        self.children.get(&(node, *block)).copied().map(Node::Block)
    }

    /// The stretches from the root to `node`.
    pub(crate) fn chain(&self, node: Node) -> Vec<&Shared> {
        let mut chain: Vec<&Shared> =
            self.ancestors(node).map(|(_, entry)| &entry.shared).collect();
        chain.reverse();
        chain
    }

    /// Tokens of each tier up to `node`; `None` for a root, or if the node is gone.
    pub(crate) fn counts(&self, node: Node) -> Option<&[usize]> {
        self.ancestors(node).next().map(|(_, entry)| entry.shared.to.as_slice())
    }

    fn ancestors(&self, node: Node) -> impl Iterator<Item = (u64, &Entry)> {
        std::iter::successors(self.block(node), |(_, entry)| self.block(entry.parent))
    }

    /// The number and the entry of a node that is a block and still kept.
    fn block(&self, node: Node) -> Option<(u64, &Entry)> {
        match node {
            Node::Root(_) => None,
            Node::Block(number) => self.entries.get(&number).map(|entry| (number, entry)),
        }
    }

    /// Marks a node and its ancestors as used now.
    pub(crate) fn touch(&mut self, node: Node) {
        self.clock += 1;
        let mut node = node;
        while let Node::Block(number) = node {
            let Some(entry) = self.entries.get_mut(&number) else { return };
            self.order.remove(&(entry.used, Reverse(entry.depth), number));
            entry.used = self.clock;
            self.order.insert((entry.used, Reverse(entry.depth), number));
            node = entry.parent;
        }
    }

    /// Keeps a block under `parent`; gives the stretch back if the parent is gone or the block is
    /// there already.
    pub(crate) fn insert(
        &mut self,
        parent: Node,
        block: [u32; PAGE],
        shared: Shared,
    ) -> Result<Node, Shared> {
        let above = match parent {
            Node::Root(_) => 0,
            Node::Block(number) => match self.entries.get(&number) {
                Some(entry) => entry.depth,
                None => return Err(shared),
            },
        };
        if self.children.contains_key(&(parent, block)) {
            return Err(shared);
        }
        self.numbers += 1;
        let (number, depth) = (self.numbers, above + 1);
        self.children.insert((parent, block), number);
        self.entries.insert(number, Entry { parent, block, depth, used: 0, shared });
        self.touch(Node::Block(number));
        Ok(Node::Block(number))
    }

    /// Gives up the least recently used leaf; `false` if there is none. Pages that a view still
    /// holds stay with it.
    pub(crate) fn evict_one(&mut self, pages: &mut Pages) -> bool {
        let Some((_, _, number)) = self.order.pop_first() else { return false };
        let Some(entry) = self.entries.remove(&number) else { return false };
        self.children.remove(&(entry.parent, entry.block));
        pages.drop_shared(entry.shared);
        true
    }

    /// The stretches of all blocks, for recounting pages.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Shared> {
        self.entries.values().map(|entry| &entry.shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvShape;

    const CLASS: PrefixClass =
        PrefixClass { cap: 3, min_depth: 0, threshold: 0, seed: None, adapter: 0 };

    /// A pool with one layer a tier, and a cache that knows `texts` (whole blocks, all rows of
    /// depth 1).
    fn known(texts: &[&[u32]]) -> (Pages, Prefix) {
        let mut pages =
            Pages::new(KvShape { layers: vec![1, 1], every_row: false, by_seed: false }, 64);
        let mut prefix = Prefix::default();
        for text in texts {
            let table = pages.table();
            let mut node = Node::Root(CLASS);
            for (i, block) in text.chunks(PAGE).enumerate() {
                (0..2).for_each(|tier| drop(pages.append(&table, tier, PAGE).unwrap()));
                let block: [u32; PAGE] = block.try_into().unwrap();
                node = prefix.child(node, &block).unwrap_or_else(|| {
                    let shared = pages.share(&table, vec![i * PAGE; 2], vec![(i + 1) * PAGE; 2]);
                    prefix.insert(node, block, shared).unwrap()
                });
            }
            pages.release(table);
        }
        (pages, prefix)
    }

    fn ids(blocks: &[u32]) -> Vec<u32> {
        blocks.iter().flat_map(|&b| (0..PAGE as u32).map(move |i| b * 100 + i)).collect()
    }

    #[test]
    fn the_longest_beginning_but_never_all() {
        let (mut pages, mut prefix) = known(&[&ids(&[1, 2, 3]), &ids(&[1, 4])]);
        let mut find = |class, text: &[u32]| prefix.find(class, text.iter().copied()).0;
        assert_eq!(find(CLASS, &[ids(&[1, 2, 3]), vec![9]].concat()), 48);
        assert_eq!(find(CLASS, &ids(&[1, 2, 3])), 32, "the last token is left to compute");
        assert_eq!(find(CLASS, &ids(&[1, 4, 3])), 32);
        assert_eq!(find(CLASS, &ids(&[2, 3])), 0, "a block counts only after its parent");
        assert_eq!(
            find(PrefixClass { seed: Some(1), ..CLASS }, &ids(&[1, 2, 3])),
            0,
            "another class"
        );
        assert_eq!(find(CLASS, &ids(&[1])[..15]), 0);
        assert_eq!(find(CLASS, &[]), 0);
        let (tokens, node) = prefix.find(CLASS, ids(&[1, 4, 4]));
        let table = pages.resume_chain(&prefix.chain(node));
        assert_eq!((tokens, pages.counts(&table)), (32, [32, 32].as_slice()));
        assert_eq!(prefix.counts(node), Some([32, 32].as_slice()));
        assert_eq!(pages.used_by_tier(), [4, 4], "the first block is kept once");
        pages.check(prefix.shared()).unwrap();
    }

    #[test]
    fn the_least_recently_used_leaf_goes_first() {
        let (mut pages, mut prefix) = known(&[&ids(&[1, 2]), &ids(&[1, 3]), &ids(&[5, 6])]);
        prefix.find(CLASS, ids(&[1, 2, 0]));
        let mut left = Vec::new();
        loop {
            let has = |blocks: &[u32]| {
                let mut node = Some(Node::Root(CLASS));
                for block in ids(blocks).chunks(PAGE) {
                    node = node.and_then(|n| prefix.child(n, block.try_into().unwrap()));
                }
                node.is_some()
            };
            left.push(
                [has(&[1]), has(&[1, 2]), has(&[1, 3]), has(&[5]), has(&[5, 6])].map(u8::from),
            );
            if !prefix.evict_one(&mut pages) {
                break;
            }
        }
        let expected = [
            [1, 1, 1, 1, 1],
            [1, 1, 0, 1, 1],
            [1, 1, 0, 1, 0],
            [1, 1, 0, 0, 0],
            [1, 0, 0, 0, 0],
            [0, 0, 0, 0, 0],
        ];
        assert_eq!(left, expected);
        assert_eq!(pages.free(), 64);
        pages.check([]).unwrap();
    }

    #[test]
    fn a_stretch_without_a_place_comes_back() {
        let (mut pages, mut prefix) = known(&[&ids(&[1])]);
        let (_, node) = prefix.find(CLASS, ids(&[1, 2]));
        let block: [u32; PAGE] = ids(&[1]).try_into().unwrap();
        let stretch = |pages: &mut Pages| {
            let table = pages.table();
            let shared = pages.snapshot(&table);
            pages.release(table);
            shared
        };
        assert!(
            prefix.insert(Node::Root(CLASS), block, stretch(&mut pages)).is_err(),
            "there already"
        );
        while prefix.evict_one(&mut pages) {}
        assert!(prefix.insert(node, block, stretch(&mut pages)).is_err(), "its parent is gone");
        assert_eq!(prefix.counts(node), None);
    }
}
