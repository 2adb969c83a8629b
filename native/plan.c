/*
 * What a rewind has to look at: the files that were written, those beside them that the log does not name, and which of their
 * pages.
 */
#include "pgh.h"

#include "storage/bufmgr.h"

#define FEW_PAGES 256			/* up to so many of indexes are compared all: to look for them in the buffers takes as long */

static void
add_target(RewindPlan *plan, Seen *seen, RelNumber node)
{
	Known	   *known = known_file(node);
	bool		found;
	Target	   *target;

	/* Of a family that a mark has made smaller. */
	if (known == NULL)
		return;
	target = hash_search(plan->targets, &node, HASH_ENTER, &found);
	if (found)
		return;
	target->known = known;
	target->dirty = hash_search(seen->files, &node, HASH_FIND, NULL);
	target->buffered = NULL;
	target->remade = target->dirty != NULL && target->dirty->dropped;
	/* An index is never used without its table's lock. */
	if (target->known->kind != 'i')
		plan->locks = lappend_oid(plan->locks, target->known->oid);
	plan->catalogs |= target->known->oid < FIRST_USER_OID;
	plan->dropped |= target->remade;
	if (target->known->oid >= FIRST_USER_OID && target->known->kind != 'i' && target->known->kind != 't')
		plan->touched = lappend_oid(plan->touched, target->known->oid);
}

/* The files that were written, and those beside them that the log does not name. */
RewindPlan
make_plan(Seen *seen)
{
	RewindPlan		plan = {0};
	HASH_SEQ_STATUS scan;
	Dirty	   *dirty;
	ListCell   *cell;

	plan.targets = make_table("pgh targets", 64, sizeof(RelNumber), sizeof(Target), CurrentMemoryContext);
	foreach(cell, known_unlogged)
		add_target(&plan, seen, lfirst_oid(cell));
	hash_seq_init(&scan, seen->files);
	while ((dirty = hash_seq_search(&scan)) != NULL)
	{
		Known	   *known = known_file(dirty->node);

		if (known == NULL)
		{
			if (dirty->unlinked)
				plan.gone = lappend(plan.gone, dirty);
			else
				plan.fresh = lappend(plan.fresh, dirty);
			continue;
		}
		foreach(cell, known_family(known->table))
			add_target(&plan, seen, lfirst_oid(cell));
	}
	return plan;
}

/* --- which pages ---------------------------------------------------------------------------------------------------- */

bool
compares_all(const Target *target, ForkNumber fork)
{
	if (target->remade || (target->dirty != NULL && target->dirty->all))
		return true;
	if (target->known->unlogged)
		return true;
	switch (fork)
	{
		case FSM_FORKNUM:
#ifdef PGH_PLANT_NO_FSM
			return false;
#endif
			return true;		/* is not in the log at all */
		case VISIBILITYMAP_FORKNUM:
#ifdef PGH_PLANT_NO_VM
			return false;
#endif
			return true;		/* a bit is cleared by a record that names the heap's page only */
		case MAIN_FORKNUM:
#ifdef PGH_PLANT_INDEX_HINTS
			return false;
#endif
			/* Scans mark index tuples dead, which is not in the log. */
			return target->known->kind == 'i' && target->buffered == NULL;
		default:
			return false;
	}
}

/* How many pages of the lease and as many of the baseline have to be looked at. */
static int64
pages_to_compare(const Target *target)
{
	int64		pages = 0;

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		if (target->known->want[fork] == InvalidBlockNumber)
			continue;
		if (compares_all(target, fork))
			pages += target->known->want[fork];
		else if (target->dirty != NULL)
			pages += bms_num_members(target->dirty->blocks[fork]);
	}
	return pages;
}

/* How much is to be looked at; index pages are looked for in the buffers where that is less. */
int64
weigh(RewindPlan *plan, Work *work, Memory *memory, const Asked *asked)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;
	int64		pages = 0,
				of_indexes = 0;
	uint32		passes,
				hand = StrategySyncStart(&passes, NULL);
	bool		replaced = memory->upto != asked->since || memory->hand != hand || memory->passes != passes;

	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
		measure_baseline(work->baseline, target->known);
		pages += pages_to_compare(target);
		if (target->known->kind == 'i' && !target->remade)
			of_indexes += target->known->want[MAIN_FORKNUM];
	}
	/* Only once they are locked: until then a reader may bring another one in, and leave a hint there. */
	plan->by_buffers = of_indexes > FEW_PAGES && !replaced;
	return plan->by_buffers ? pages - of_indexes : pages;
}

/* Pages of these indexes that lie in the buffers: where none was evicted, only they can differ. */
static void
buffered_pages(Work *work, HTAB *targets)
{
	for (int i = 0; i < NBuffers; i++)
	{
		BufferDesc *buffer = GetBufferDescriptor(i);
		RelNumber	node;
		Target	   *target;

		/* Without the header's lock: nobody but us brings in or changes pages of a locked relation. */
		if (!(pg_atomic_read_u32(&buffer->state) & BM_TAG_VALID) || BUFFER_DB(buffer) != work->lease)
			continue;
		node = BUFFER_REL(buffer);
		target = hash_search(targets, &node, HASH_FIND, NULL);
		if (target != NULL && target->buffered != NULL && buffer->tag.forkNum == MAIN_FORKNUM &&
			buffer->tag.blockNum < (BlockNumber) PG_INT32_MAX)
			target->buffered = bms_add_member(target->buffered, (int) buffer->tag.blockNum);
	}
}

/* Which index pages lie in the buffers; none is evicted unseen, since the clock hand did not move. */
void
find_buffered(RewindPlan *plan, Work *work, const Memory *memory)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;
	uint32		passes;

	if (!plan->by_buffers)
		return;
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (target->known->kind == 'i' && !target->remade && !target->known->unlogged)
			target->buffered = bms_make_singleton(0);
	buffered_pages(work, plan->targets);
	/* What was replaced since the last rewind was not seen: then all of them are compared after all. */
	if (StrategySyncStart(&passes, NULL) != memory->hand || passes != memory->passes)
	{
		hash_seq_init(&scan, plan->targets);
		while ((target = hash_seq_search(&scan)) != NULL)
			target->buffered = NULL;
	}
}
