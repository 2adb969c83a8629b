/*
 * One mark set: what differs from the state below is written down.
 */
#include "pgh.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xloginsert.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "utils/memutils.h"

/*
 * A sequence says in advance in the log what it will give: the next 32 calls write nothing there.  Without that, the first one
 * does, and is seen.
 */
static void
settle_sequence(Work *work, Target *target)
{
	Buffer		buffer = lease_page(work, target, MAIN_FORKNUM, 0);
	Page		page;
	ItemId		item;
	Form_pg_sequence_data data;

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	data = (Form_pg_sequence_data) ((char *) PageGetItem(page, item) + ((HeapTupleHeader) PageGetItem(page, item))->t_hoff);
	if (data->log_cnt != 0)
	{
		START_CRIT_SECTION();
		data->log_cnt = 0;
		MarkBufferDirty(buffer);
		if (is_logged(target, MAIN_FORKNUM))
		{
			log_newpage_buffer(buffer, true);
			follow(work);
		}
		END_CRIT_SECTION();
	}
	UnlockReleaseBuffer(buffer);
}

static void
mark_block(Work *work, Target *target, ForkNumber fork, BlockNumber block, MarkWriter *writer)
{
	BlockNumber want = target->known->want[fork];
	Buffer		lease = lease_page(work, target, fork, block),
				source = InvalidBuffer;
	const char *below = NULL;

	/* A copy: a page in the buffers changes by hints under a shared lock, and is not aligned for a file. */
	PGIOAlignedBlock copy;

	LockBuffer(lease, BUFFER_LOCK_SHARE);
	memcpy(copy.data, BufferGetPage(lease), BLCKSZ);
	UnlockReleaseBuffer(lease);
	work->compared++;
	if (want != InvalidBlockNumber && block < want && (below = marked_page(target->node, fork, block)) == NULL)
	{
		source = baseline_page(work, target, fork, block);
		LockBuffer(source, BUFFER_LOCK_SHARE);
		below = (const char *) BufferGetPage(source);
	}
	if (below == NULL || differ(copy.data, below))
	{
		mark_page(writer, target->node, fork, block, copy.data);
		work->written++;
	}
	if (source != InvalidBuffer)
		UnlockReleaseBuffer(source);
}

/* What differs of one relation from the state below.  The caller has measured the lease. */
static void
mark_target(Work *work, Target *target, MarkWriter *writer)
{
	const Known *known = target->known;
	bool		resized = false;

	if (known->kind == 'S')
		settle_sequence(work, target);
	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		BlockNumber have = target->have[fork],
					want = known->want[fork];
		int			block = -1;

		resized |= have != want;
		if (have == InvalidBlockNumber)
			continue;
		CHECK_FOR_INTERRUPTS();
		if (compares_all(target, fork) || want == InvalidBlockNumber)
			want = 0;
		for (BlockNumber new_block = want; new_block < have; new_block++)
			mark_block(work, target, fork, new_block, writer);
		if (want == 0)
			continue;
		if (target->dirty != NULL)
			while ((block = bms_next_member(target->dirty->blocks[fork], block)) >= 0)
				if ((BlockNumber) block < Min(want, have))
					mark_block(work, target, fork, (BlockNumber) block, writer);
		block = -1;
		if (fork == MAIN_FORKNUM)
			while ((block = bms_next_member(target->buffered, block)) >= 0)
				if ((BlockNumber) block < Min(want, have))
					mark_block(work, target, fork, (BlockNumber) block, writer);
	}
	if (resized)
	{
		MarkNode	node = {target->node, known->oid, known->table, kind_of(known), known->unlogged, false};

		memcpy(node.want, target->have, sizeof node.want);
		mark_node(writer, &node);
	}
}

/* --- relations --------------------------------------------------------------------------------------------------------- */

/* Files that a mark's state adds are known for as long as it is written; an error may have left them. */
static List *provisional = NIL;

void
forget_provisional(void)
{
	ListCell   *cell;

	foreach(cell, provisional)
		forget_file(lfirst_oid(cell));
	list_free(provisional);
	provisional = NIL;
}

/* Which relations the mark's state has, and the one below has not, or the other way round. */
static void
compare_relations(const Asked *asked, RewindPlan *plan, MarkWriter *writer)
{
	HTAB	   *there;
	HASH_SEQ_STATUS scan;
	Target	   *target;

	there = make_table("pgh relations", asked->nnodes, sizeof(RelNumber), sizeof(RelNumber), CurrentMemoryContext);
	for (int i = 0; i < asked->nnodes; i++)
	{
		RelNumber	node = DatumGetObjectId(asked->nodes[i]);

		(void) hash_search(there, &node, HASH_ENTER, NULL);
		if (known_file(node) == NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
			bool		unlogged = false;
			bool		found;
			Known	   *known;

			for (int j = 0; j < asked->nunlogged && !unlogged; j++)
				unlogged = DatumGetObjectId(asked->unlogged[j]) == node;
			provisional = lappend_oid(provisional, node);
			MemoryContextSwitchTo(old);
			known = know_file(node, DatumGetObjectId(asked->oids[i]), DatumGetObjectId(asked->tables[i]), asked->kinds[i],
							  unlogged);
			known->measured = true;
			for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
				known->want[fork] = InvalidBlockNumber;
			target = hash_search(plan->targets, &node, HASH_ENTER, &found);
			target->known = known;
			target->dirty = NULL;
			target->buffered = NULL;
			target->remade = false;
			for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
				target->have[fork] = smgrexists(known_lease(known, asked->lease), fork) ?
					smgrnblocks(known_lease(known, asked->lease), fork) : InvalidBlockNumber;
		}
	}
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (hash_search(there, &target->node, HASH_FIND, NULL) == NULL)
		{
			MarkNode	node = {target->node, target->known->oid, target->known->table, kind_of(target->known),
			target->known->unlogged, true};

			for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
				node.want[fork] = InvalidBlockNumber;
			mark_node(writer, &node);
			(void) hash_search(plan->targets, &target->node, HASH_REMOVE, NULL);
		}
}

const char *
mark_lease(const Asked *asked, Answer *answer, Work *work)
{
	RewindPlan	plan = {0};
	uint32		passes,
				hand = StrategySyncStart(&passes, NULL);
	const char *status = approach(asked, answer, &plan, work);
	MarkWriter *writer;

	if (status != NULL && strcmp(status, "nothing") != 0)
		return status;
	if (status == NULL && plan.catalogs && asked->nnodes == 0)
		return "relations";
	writer = begin_mark(asked->name);
	if (status == NULL)
	{
		HASH_SEQ_STATUS scan;
		Target	   *target;

		answer->xid = GetTopTransactionId();
		if (plan.catalogs)
			compare_relations(asked, &plan, writer);
		hash_seq_init(&scan, plan.targets);
		while ((target = hash_seq_search(&scan)) != NULL)
			mark_target(work, target, writer);
	}
	end_mark(writer);
	forget_provisional();
	remember(asked, answer, work, passes, hand);
	return "marked";
}
