/*
 * What is known of a baseline: kept in this session's memory, for all rewinds of it.
 */
#include "pgh.h"

#include "catalog/pg_tablespace_d.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

typedef struct Family
{
	Oid			table;			/* key */
	List	   *nodes;
} Family;

Oid			known_baseline = InvalidOid;
List	   *known_unlogged = NIL;

static MemoryContext context = NULL;
static HTAB *files = NULL;
static HTAB *families = NULL;
static HTAB *memories = NULL;

PG_FUNCTION_INFO_V1(pgh_know);

/* A hash table whose entries begin with their key, of bytes without meaning. */
HTAB *
make_table(const char *name, long size, Size key, Size entry, MemoryContext in)
{
	HASHCTL		ctl = {0};

	ctl.keysize = key;
	ctl.entrysize = entry;
	ctl.hcxt = in;
	return hash_create(name, size, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Of an array of OIDs or int4: its elements, and how many there are. */
int
elements(ArrayType *array, Oid type, Datum **values)
{
	int			n;

	deconstruct_array(array, type, sizeof(int32), true, TYPALIGN_INT, values, NULL, &n);
	return n;
}

/* NULL where the state to go back to has no such file. */
Known *
known_file(RelNumber node)
{
	Known	   *known = known_below(node);

	return known != NULL && known->gone ? NULL : known;
}

/* The same, with those that only states below have. */
Known *
known_below(RelNumber node)
{
	return hash_search(files, &node, HASH_FIND, NULL);
}

/* Add a file, or say otherwise of one that is known: marks do so. */
Known *
know_file(RelNumber node, Oid oid, Oid table, char kind, bool unlogged)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		found;
	Known	   *known = hash_search(files, &node, HASH_ENTER, &found);

	if (!found)
	{
		bool		any;
		Family	   *family = hash_search(families, &table, HASH_ENTER, &any);

		if (!any)
			family->nodes = NIL;
		family->nodes = lappend_oid(family->nodes, node);
		known->lease = InvalidOid;
		known->smgr = known->source = NULL;
		known->measured = known->gone = false;
		if (unlogged)
			known_unlogged = lappend_oid(known_unlogged, node);
	}
	known->oid = oid;
	known->table = table;
	known->btree = kind == 'b';
	known->kind = known->btree ? 'i' : kind;
	known->unlogged = unlogged;
	MemoryContextSwitchTo(old);
	return known;
}

/* As it was told: pg_class.relkind, o, or b for a B-tree. */
char
kind_of(const Known *known)
{
	return known->btree ? 'b' : known->kind;
}

static void
close_files(Known *known)
{
	if (known->smgr != NULL)
		LET_CLOSE(known->smgr);
	if (known->source != NULL)
		LET_CLOSE(known->source);
}

void
forget_file(RelNumber node)
{
	Known	   *known = known_below(node);
	Family	   *family;

	/* What an error has kept from being known. */
	if (known == NULL)
		return;
	family = hash_search(families, &known->table, HASH_FIND, NULL);
	family->nodes = list_delete_oid(family->nodes, node);
	known_unlogged = list_delete_oid(known_unlogged, node);
	close_files(known);
	(void) hash_search(files, &node, HASH_REMOVE, NULL);
}

List *
known_family(Oid table)
{
	Family	   *family = hash_search(families, &table, HASH_FIND, NULL);

	return family ? family->nodes : NIL;
}

/* The lease's files.  PostgreSQL closes at the end of a transaction what nobody keeps, and to open them is what takes long. */
SMgrRelation
known_lease(Known *known, Oid lease)
{
	if (known->smgr != NULL && known->lease != lease)
	{
		LET_CLOSE(known->smgr);
		known->smgr = NULL;
	}
	if (known->smgr == NULL)
	{
		known->smgr = OPEN(LOCATOR(DEFAULTTABLESPACE_OID, lease, known->node));
		known->lease = lease;
		KEEP_OPEN(known->smgr);
	}
	return known->smgr;
}

SMgrRelation
known_source(Known *known, Oid baseline)
{
	if (known->source == NULL)
	{
		known->source = OPEN(LOCATOR(DEFAULTTABLESPACE_OID, baseline, known->node));
		KEEP_OPEN(known->source);
	}
	return known->source;
}

static void
forget_all(void)
{
	known_baseline = InvalidOid;
	if (files != NULL)
	{
		forget_provisional();
		forget_marks();
	}
	known_unlogged = NIL;
	if (files != NULL)
	{
		HASH_SEQ_STATUS scan;
		Known	   *known;

		hash_seq_init(&scan, files);
		while ((known = hash_seq_search(&scan)) != NULL)
			close_files(known);
		files = NULL;
	}
	if (context != NULL)
		MemoryContextDelete(context);
	context = NULL;
}

Memory *
memory_of(Oid lease)
{
	bool		found;
	Memory	   *memory;

	if (memories == NULL)
		memories = make_table("pgh leases", 8, sizeof(Oid), sizeof(Memory), TopMemoryContext);
	memory = hash_search(memories, &lease, HASH_ENTER, &found);
	if (!found)
	{
		memory->upto = InvalidXLogRecPtr;
		memory->passes = memory->hand = 0;
		memory->tombstones = NIL;
	}
	return memory;
}

/*
 * pgh_know(baseline oid, nodes oid[], oids oid[], tables oid[], kinds text, unlogged oid[]) returns void
 */
Datum
pgh_know(PG_FUNCTION_ARGS)
{
	Datum	   *nodes,
			   *oids,
			   *tables,
			   *unlogged;
	char	   *kinds;
	int			n,
				u;
	MemoryContext old;

	if (PG_NARGS() != 6)
		ereport(ERROR, errcode(ERRCODE_INVALID_FUNCTION_DEFINITION), errmsg("declared with other arguments"));
	n = elements(PG_GETARG_ARRAYTYPE_P(1), OIDOID, &nodes);
	kinds = text_to_cstring(PG_GETARG_TEXT_PP(4));
	u = elements(PG_GETARG_ARRAYTYPE_P(5), OIDOID, &unlogged);

	if (elements(PG_GETARG_ARRAYTYPE_P(2), OIDOID, &oids) != n || elements(PG_GETARG_ARRAYTYPE_P(3), OIDOID, &tables) != n ||
		(int) strlen(kinds) != n)
		ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("arrays of different lengths"));

	/* An error on the way must not leave half of it. */
	forget_all();
	context = AllocSetContextCreate(TopMemoryContext, "pgh baseline", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	files = make_table("pgh files", n, sizeof(RelNumber), sizeof(Known), context);
	families = make_table("pgh tables", n, sizeof(Oid), sizeof(Family), context);
	for (int i = 0; i < n; i++)
		(void) know_file(DatumGetObjectId(nodes[i]), DatumGetObjectId(oids[i]), DatumGetObjectId(tables[i]), kinds[i], false);
	for (int i = 0; i < u; i++)
	{
		Known	   *known = known_file(DatumGetObjectId(unlogged[i]));

		if (known == NULL)
			ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					errmsg("unlogged file %u is not among the files", DatumGetObjectId(unlogged[i])));
		known->unlogged = true;
		known_unlogged = lappend_oid(known_unlogged, known->node);
	}
	MemoryContextSwitchTo(old);
	known_baseline = PG_GETARG_OID(0);
	PG_RETURN_VOID();
}
