/*
 * Who owns what in the lease, and who was granted what: its rows in the server's own pg_shdepend, as the baseline's.
 *
 * Every relation that is made or dropped writes there.  Nobody but sessions of the lease changes its rows (DROP OWNED and
 * REASSIGN OWNED work on their own database), and CREATE DATABASE has copied the baseline's.
 */
#include "pgh.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/indexing.h"
#include "catalog/pg_shdepend.h"
#include "storage/procarray.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relmapper.h"
#include "utils/snapmgr.h"

/* Without padding: compared as bytes. */
typedef struct Owned
{
	Oid			classid,
				objid;
	int32		objsubid;
	Oid			refclassid,
				refobjid;
	int32		deptype;
} Owned;

typedef struct Row
{
	Owned		what;
	TransactionId xmin;
	ItemPointerData tid;
} Row;

typedef struct Rows
{
	int			n,
				room;
	Row		   *all;			/* in order */
} Rows;

bool
is_of_owners(RelNumber node)
{
	return node == NODE_OF_SHARED(SharedDependRelationId) || node == NODE_OF_SHARED(SharedDependDependerIndexId) ||
		node == NODE_OF_SHARED(SharedDependReferenceIndexId);
}

static int
in_order(const void *one, const void *other)
{
	return memcmp(&((const Row *) one)->what, &((const Row *) other)->what, sizeof(Owned));
}

static Rows
rows_of(Relation relation, Oid database)
{
	Rows		rows = {0, 64, palloc(64 * sizeof(Row))};
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_shdepend_dbid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(database));
	scan = systable_beginscan(relation, SharedDependDependerIndexId, true, snapshot, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_shdepend form = (Form_pg_shdepend) GETSTRUCT(tuple);
		Row		   *row;

		if (rows.n == rows.room)
			rows.all = repalloc_huge(rows.all, sizeof(Row) * (rows.room *= 2));
		row = &rows.all[rows.n++];
		row->what = (Owned) {form->classid, form->objid, form->objsubid, form->refclassid, form->refobjid, form->deptype};
		row->xmin = HeapTupleHeaderGetRawXmin(tuple->t_data);
		row->tid = tuple->t_self;
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	qsort(rows.all, rows.n, sizeof(Row), in_order);
	return rows;
}

static void
insert(Relation relation, CatalogIndexState indexes, Oid database, const Owned *what)
{
	Datum		values[Natts_pg_shdepend];
	bool		nulls[Natts_pg_shdepend] = {0};
	HeapTuple	tuple;

	values[Anum_pg_shdepend_dbid - 1] = ObjectIdGetDatum(database);
	values[Anum_pg_shdepend_classid - 1] = ObjectIdGetDatum(what->classid);
	values[Anum_pg_shdepend_objid - 1] = ObjectIdGetDatum(what->objid);
	values[Anum_pg_shdepend_objsubid - 1] = Int32GetDatum(what->objsubid);
	values[Anum_pg_shdepend_refclassid - 1] = ObjectIdGetDatum(what->refclassid);
	values[Anum_pg_shdepend_refobjid - 1] = ObjectIdGetDatum(what->refobjid);
	values[Anum_pg_shdepend_deptype - 1] = CharGetDatum((char) what->deptype);
	tuple = heap_form_tuple(RelationGetDescr(relation), values, nulls);
	CatalogTupleInsertWithInfo(relation, tuple, indexes);
	heap_freetuple(tuple);
}

/* Walk both at once: what only one of them has is deleted, or inserted; or, without a list of indexes, only found. */
static bool
merge(Relation relation, CatalogIndexState indexes, Oid lease, const Rows *is, const Rows *wanted)
{
	bool		same = true;

	for (int i = 0, w = 0; i < is->n || w < wanted->n;)
	{
		int			order = i == is->n ? 1 : w == wanted->n ? -1 : in_order(&is->all[i], &wanted->all[w]);

		if (order != 0)
			same = false;
		if (order < 0 && indexes != NULL)
			CatalogTupleDelete(relation, &is->all[i].tid);
		if (order > 0 && indexes != NULL)
			insert(relation, indexes, lease, &wanted->all[w].what);
		i += order <= 0;
		w += order >= 0;
	}
	return same;
}

/* Whether all that only the lease has was written by these transactions: what somebody writes later is none of this rewind's. */
static bool
all_by(const Rows *is, const Rows *wanted, const List *written)
{
	for (int i = 0; i < is->n; i++)
		if (bsearch(&is->all[i], wanted->all, wanted->n, sizeof(Row), in_order) == NULL &&
			!list_member_oid(written, is->all[i].xmin))
			return false;
	return true;
}

/*
 * False where the caller has to look: somebody may still commit another row, or put back where that is not asked for.
 *
 * written: ids of the transactions that wrote to pg_shdepend, of whatever database.
 */
bool
settle_owners(const Asked *asked, const List *written, bool put_back, Work *work)
{
	Relation	relation;
	Rows		is,
				wanted;
	ListCell   *cell;
	bool		settled;

	if (written == NIL)
		return true;
	/* A mark's rows are in no database's. */
	if (asked->name != NULL || ARR_NDIM(asked->marks) != 0 || ARR_NDIM(asked->above) != 0)
		return false;
	foreach(cell, written)
		if (TransactionIdIsNormal(lfirst_oid(cell)) && TransactionIdIsInProgress(lfirst_oid(cell)))
			return false;
	relation = table_open(SharedDependRelationId, put_back ? RowExclusiveLock : AccessShareLock);
	is = rows_of(relation, asked->lease);
	wanted = rows_of(relation, asked->baseline);
	settled = merge(relation, NULL, asked->lease, &is, &wanted);
	if (!settled && put_back && all_by(&is, &wanted, written))
	{
		CatalogIndexState indexes = CatalogOpenIndexes(relation);

		(void) merge(relation, indexes, asked->lease, &is, &wanted);
		CatalogCloseIndexes(indexes);
		/* Records of ours that nobody follows. */
		work->contiguous = false;
		settled = true;
	}
	table_close(relation, NoLock);
	return settled;
}
