import { db } from './db';

const cache = new Map<string, Promise<string[]>>();

export const forget = () => cache.clear();

/** Titles of what a tenant sells, from memory where they are known. */
export function titles(tenantId: number) {
  const key = `tenant:${tenantId}:titles`;
  const found = cache.get(key) ?? db.service.findMany({ where: { tenantId }, orderBy: { id: 'asc' } }).then((all) => all.map(({ title }) => title));
  cache.set(key, found);
  return found;
}

export async function offer(tenantId: number, slug: string, priceCents: number, addOns: Record<string, number> = {}) {
  const made = await db.service.create({
    data: {
      tenantId, slug, title: slug[0].toUpperCase() + slug.slice(1), priceCents,
      addOns: { create: Object.entries(addOns).map(([name, cents]) => ({ slug: name, priceCents: cents })) },
    },
  });
  forget();
  return made;
}
