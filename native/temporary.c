/*
 * Temporary tables of sessions that stay: whether a rewind would take their rows out of the catalogs.
 */
#include "pgh.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xlogutils.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_tablespace_d.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"

/* Whether a row was committed and is there; nobody who writes to it is under way. */
bool
is_live(HeapTupleHeader row)
{
	TransactionId xmax = HeapTupleHeaderGetRawXmax(row);

	if (!HeapTupleHeaderXminFrozen(row) && !TransactionIdDidCommit(HeapTupleHeaderGetRawXmin(row)))
		return false;
	return (row->t_infomask & HEAP_XMAX_INVALID) || HEAP_XMAX_IS_LOCKED_ONLY(row->t_infomask) ||
		(row->t_infomask & HEAP_XMAX_IS_MULTI) || !TransactionIdDidCommit(xmax);
}

static bool
block_depends(Oid lease, const Target *target, BlockNumber block, const List *namespaces)
{
	Buffer		buffer = ReadBufferWithoutRelcache(LOCATOR(DEFAULTTABLESPACE_OID, lease, target->node), MAIN_FORKNUM, block,
												   RBM_NORMAL, NULL, true);
	Page		page;
	bool		found = false;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	for (OffsetNumber number = FirstOffsetNumber; !PageIsNew(page) && number <= PageGetMaxOffsetNumber(page) && !found; number++)
	{
		ItemId		item = PageGetItemId(page, number);
		HeapTupleHeader row;
		Form_pg_depend depend;

		if (!ItemIdIsNormal(item))
			continue;
		row = (HeapTupleHeader) PageGetItem(page, item);
		/* No column of it is ever null, nor of variable length. */
		depend = (Form_pg_depend) ((char *) row + row->t_hoff);
		found = depend->refclassid == NamespaceRelationId && list_member_oid(namespaces, depend->refobjid) && is_live(row);
	}
	UnlockReleaseBuffer(buffer);
	return found;
}

/* Whether anything lies in these namespaces, as far as pages of pg_depend say that were written. */
static bool
anything_depends(Oid lease, const Target *target, const List *namespaces)
{
	BlockNumber have = target->have[MAIN_FORKNUM];
	int			block = -1;

	if (target->dirty->all)
	{
		for (BlockNumber each = 0; each < have; each++)
			if (block_depends(lease, target, each, namespaces))
				return true;
		return false;
	}
	while ((block = bms_next_member(target->dirty->blocks[MAIN_FORKNUM], block)) >= 0)
		if ((BlockNumber) block < have && block_depends(lease, target, (BlockNumber) block, namespaces))
			return true;
	return false;
}

/*
 * Whether temporary tables of sessions that stay would lose their rows in the catalogs.
 *
 * The namespaces that the baseline has stay.  What lies in them depends on them (pg_depend), and what was there at the last
 * rewind is gone: so only pages that were written since can say so.
 */
bool
disturbs_temporary(const Asked *asked, const Present *present, HTAB *targets)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;
	ListCell   *cell;
	bool		found = false;

	foreach(cell, present->temporary)
	{
		bool		stays = false;

		for (int i = 0; i < asked->nempty && !stays; i++)
			stays = DatumGetObjectId(asked->empty[i]) == lfirst_oid(cell);
		if (!stays)
			return true;
	}
	if (present->temporary == NIL)
		return false;
	hash_seq_init(&scan, targets);
	while ((target = hash_seq_search(&scan)) != NULL)
		if (target->known->oid == DependRelationId && target->dirty != NULL)
			found |= anything_depends(asked->lease, target, present->temporary);
	return found;
}
