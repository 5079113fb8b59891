//! Prefix cache: blocks of prompt tokens that were computed before, as a tree whose nodes keep their stretch of pages.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::{PAGE, Pages, Shared};

/// A place in the tree: a text of whole blocks that begins at the root of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    /// The empty text of a class. Texts of different classes never meet: the class stands for everything besides the
    /// ids that changes what a page holds.
    Root(u64),
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

/// Blocks by parent and token ids. A key holds the ids themselves and the parent's number, which is given once and
/// never again: two texts share a node only if they are equal, so no collision can serve a wrong one.
#[derive(Debug, Default)]
pub(crate) struct Prefix {
    entries: BTreeMap<u64, Entry>,
    children: BTreeMap<(Node, [u32; PAGE]), u64>,
    /// Least recently used first, of equal ones the deepest. Whoever uses an entry uses its ancestors too, so the first
    /// is always a leaf.
    order: BTreeSet<(u64, Reverse<usize>, u64)>,
    clock: u64,
    numbers: u64,
}

impl Prefix {
    /// The longest known beginning of `ids`, in tokens. Never all of `ids`: the last token at least is left to compute.
    pub(crate) fn find(&mut self, class: u64, ids: impl IntoIterator<Item = u32>) -> (usize, Node) {
        let (mut node, mut blocks) = (Node::Root(class), 0);
        let mut ids = ids.into_iter().peekable();
        let mut block = [0; PAGE];
        'blocks: loop {
            for slot in &mut block {
                let Some(id) = ids.next() else { break 'blocks };
                *slot = id;
            }
            let Some(child) = self.child(node, &block).filter(|_| ids.peek().is_some()) else { break };
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
        let mut chain: Vec<&Shared> = self.ancestors(node).map(|(_, entry)| &entry.shared).collect();
        chain.reverse();
        chain
    }

    /// Tokens of each tier up to `node`; `None` for a root, or if the node is gone.
    pub(crate) fn counts(&self, node: Node) -> Option<&[usize]> {
        self.ancestors(node).next().map(|(_, entry)| entry.shared.to.as_slice())
    }

    fn ancestors(&self, node: Node) -> impl Iterator<Item = (u64, &Entry)> {
        let up = move |node: Node| match node {
            Node::Root(_) => None,
            Node::Block(number) => self.entries.get(&number).map(|entry| (number, entry)),
        };
        std::iter::successors(up(node), move |(_, entry)| up(entry.parent))
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

    /// Keeps a block under `parent`; gives the stretch back if the parent is gone or the block is there already.
    pub(crate) fn insert(&mut self, parent: Node, block: [u32; PAGE], shared: Shared) -> Result<Node, Shared> {
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

    /// Gives up the least recently used leaf; `false` if there is none. Pages that a view still holds stay with it.
    pub(crate) fn evict_one(&mut self, pages: &mut Pages) -> bool {
        let Some((_, _, number)) = self.order.pop_first() else { return false };
        let Some(entry) = self.entries.remove(&number) else { return false };
        self.children.remove(&(entry.parent, entry.block));
        pages.drop_shared(entry.shared);
        true
    }

    /// All stretches kept.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Shared> {
        self.entries.values().map(|entry| &entry.shared)
    }
}
